"""A request's way: routed, prefilled, its KVCache handed over, decoded; every stage into the ledger."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

from msgspec import Struct

from prfaas_lab.errors import EngineError, LabError
from prfaas_lab.kvcache import Prompt
from prfaas_lab.lab.answers import Answers
from prfaas_lab.lab.both_ends import BothEnds
from prfaas_lab.lab.cache_copies import CacheCopies
from prfaas_lab.lab.cache_news import PromptNames
from prfaas_lab.lab.engines import Engine, Hold
from prfaas_lab.lab.fleet import Fleet
from prfaas_lab.lab.kvcache_manager import KVCacheManager
from prfaas_lab.lab.orders import HANDOVER_BYTES, DecodeOrder, PrefillOrder, RedirectOrder
from prfaas_lab.lab.stamps import (
    record_failed,
    record_moved,
    record_prefill,
    record_restored,
    record_routed,
    record_transfer,
)
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.ledger import Ledger
from prfaas_lab.router.values import Costs, DatacenterView, PathView, Placement, Plan, Role, Route, View
from prfaas_lab.workload.request import Request


class Network(Protocol):
    """What a service must know of the network."""

    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        """Host and port to dial from one engine to reach another's receiver."""
        ...

    def paths(self) -> tuple[PathView, ...]:
        """The ways between datacenters, as they are now."""
        ...


OnToken = Callable[[int], bool | None]
"""Called with each token as it comes. It may answer True: that was the last one wanted."""


class _Flight(Struct):
    """What is known of one request's hand-over; its two ends report separately."""

    request: Request
    on_token: OnToken | None
    submitted_s: float
    ends: BothEnds
    reserved: bool = False
    """Decode has memory for it."""
    when_reserved: asyncio.Future[None] | None = None
    """What waits for that, if it takes a while."""
    placement: Placement | None = None
    prompt: Prompt | None = None
    expected_bytes: int = 0
    """The layout's prediction of its KVCache."""
    way: tuple[str, str] | None = None
    """Between datacenters, while its KVCache has still to cross it."""
    stage: str = "route"
    stopped: bool = False
    held_tokens: int = 0
    tokens: list[int] | bytes = b""
    """As its engine tells them: zeros, where nobody knows more."""
    sent: dict[str, Any] | None = None
    received: dict[str, Any] | None = None
    hold: Hold | None = None
    """At its prefill engine, until that has sent its KVCache."""
    decode_hold: Hold | None = None
    since: float | None = None
    """When it came in line for its prefill, where it has been moved since."""
    moving: Literal["", "prefill", "transfer"] = ""
    """What goes on once decode has memory for it."""


class Service:
    """Serves requests on the engines of a run. `plan` and `route` may be replaced at any time, in one
    assignment each."""

    def __init__(
        self,
        *,
        engines: dict[str, Engine],
        datacenters: tuple[DatacenterView, ...],
        network: Network,
        route: Route,
        plan: Plan,
        expected_bytes: Callable[[int], int],
        ledger: Ledger,
        caches: KVCacheManager | None = None,
        costs: Costs | None = None,
        sends_ids: bool = True,
        keep_answers: Collection[str] = (),
    ) -> None:
        """`expected_bytes(prompt_tokens)` is the layout's prediction of a prompt's KVCache. `sends_ids`:
        whether engines read prompts, and not only how long they are and how their blocks are named.
        `keep_answers` names the datacenters in which what decode computed is kept for a next turn."""
        self.plan, self.route = plan, route
        self.caches, self._costs = caches, costs
        self.copies = CacheCopies(engines, network, caches, ledger) if caches else None
        self.answers = None
        if caches and self.copies and keep_answers:
            self.answers = Answers(engines, caches, self.copies, datacenters=keep_answers)
        self._engines, self._datacenters, self._network = engines, datacenters, network
        self._fleet = Fleet(engines.values())
        self._view: View | None = None
        self.committed: Counter[tuple[str, str]] = Counter()
        """KVCache that is still to be received over each way between datacenters, in bytes: of all requests
        that were placed so, whether or not their prefill has begun; less what decode says that it holds. In
        memory: on the wire it is less where it is compressed (`View.wire_share`)."""
        self._sent_bytes = self._wire_bytes = 0
        self._wire_share = 1.0
        self._expected_bytes, self._ledger, self._sends_ids = expected_bytes, ledger, sends_ids
        self._flights: dict[str, _Flight] = {}

    async def serve(self, request: Request, on_token: OnToken | None = None) -> Sequence[int] | None:
        """The request's output tokens, or None when it failed; the ledger has the reason.

        Cancelled, it records the failure (the cancellation's message is the reason, if it has one) and
        frees what the engines held.
        """
        ledger, flight = self._ledger, self._submit(request, on_token)
        try:
            placement = flight.placement = self._place(request, flight.prompt)
            self._begin(flight, placement)
            try:
                self._begin_decode(flight, self._engines[placement.decode])
                if not flight.reserved or placement.copy_from is not None:
                    await self._prepare(flight, placement)
                if not flight.ends.over.done():
                    self._begin_prefill(flight, placement)
                await flight.ends.over
            finally:
                self._end(flight)
            self._hand_over(flight, flight.placement)
        except LabError as error:
            record_failed(ledger, request, flight.stage, str(error))
            return None
        except asyncio.CancelledError as cancelled:
            reason = str(cancelled) or "given up: the run was stopped, or did not drain in time"
            record_failed(ledger, request, flight.stage, reason)
            raise
        why = "stop" if flight.stopped else "length"
        ledger.record(ev.RequestFinished(at_s=ledger.now(), request_id=request.id, why=why))
        if self.answers is not None and flight.prompt is not None:
            ends = {"prefill": flight.placement.prefill, "decode": flight.placement.decode}
            self.answers.offer(request, flight.prompt, flight.tokens, **ends)
        return flight.tokens

    def _submit(self, request: Request, on_token: OnToken | None) -> _Flight:
        submitted_s = self._ledger.now()
        self._ledger.record(
            ev.RequestSubmitted(
                at_s=submitted_s,
                request_id=request.id,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
            )
        )
        flight = _Flight(request, on_token, submitted_s, BothEnds())
        flight.expected_bytes = self._expected_bytes(request.prompt_tokens)
        if self.caches is not None and request.prompt:  # one without ids shares nothing with any other
            flight.prompt = self.caches.name(request.prompt)
        return flight

    def view(self) -> View:
        """The deployment now; of all but the paths, whenever it is looked at."""
        paths = self._network.paths()
        if self._view is None or self._view.paths is not paths:
            self._view = View(
                datacenters=self._datacenters,
                engines=self._fleet.views(),
                paths=paths,
                committed_bytes=self.committed,
                wire_share=self._wire_share,
                ranks=self._fleet,
                costs=self._costs,
            )
        return self._view

    def relieve(self, engine: Engine) -> None:
        """Move what an engine that drains has in hand to that of its role and datacenter which has least:
        requests whose prefill has not begun, and those that are to be decoded there and of whose KVCache
        nothing has been sent. Now, or when their prefill engine gives them back: ask until none is left."""
        if self.view().idlest(engine.role, engine.datacenter) is None:
            return
        for flight in list(self._flights.values()):
            placed = flight.placement
            if placed is None or flight.stage not in ("prefill", "transfer"):
                continue
            if engine.name == placed.decode or (engine.name == placed.prefill and flight.stage == "prefill"):
                flight.ends.withdraw("/prefill")

    def crossing_bytes(self, engine: Engine) -> int:
        """The most KVCache that one request has which is on its way to an engine from another datacenter: of
        each sender the first, since it sends in that order. An engine that drains has to wait for it."""
        first: dict[str, int] = {}
        for flight in self._flights.values():
            placed = flight.placement
            if placed is not None and placed.decode == engine.name and flight.way is not None:
                first.setdefault(placed.prefill, flight.expected_bytes)
        return max(first.values(), default=0)

    def _move(self, flight: _Flight) -> None:
        """It was given back: to other engines with it, where those that it was placed on drain. Its memory is
        reserved first, and a prompt keeps its place in line."""
        before, view = flight.placement, self.view()
        assert before is not None, "it was placed"
        assert flight.hold is not None, "at one engine"
        assert flight.decode_hold is not None, "and at another"
        if self.caches is not None and flight.prompt is not None:
            view = self.caches.matched(view, flight.prompt)
        prefill, decode = before.prefill, self._instead(before.decode, view)
        if flight.moving == "prefill":
            prefill = self._instead(prefill, view)
        placement = flight.placement = replace(before, prefill=prefill, decode=decode, copy_from=None)
        if (prefill, decode) != (before.prefill, before.decode):
            record_moved(self._ledger, flight.request, placement)
        if prefill != before.prefill:
            flight.hold.release()
            flight.hold = self._prefill_hold(flight, placement)
        if decode == before.decode:
            self._go_on(flight, placement)
            return
        flight.ends.give_up("/decode")
        flight.decode_hold.release()
        flight.decode_hold = Hold(self._engines[decode], flight.request.id)
        if flight.way is not None:
            self.committed[flight.way] += self._held(flight)
        flight.held_tokens, flight.stage = 0, "reserve"
        self._begin_decode(flight, self._engines[decode])

    def _go_on(self, flight: _Flight, placement: Placement) -> None:
        """Decode has memory for what was given back."""
        what, flight.moving = flight.moving, ""
        if what == "prefill":
            self._begin_prefill(flight, placement)
            return
        flight.stage = "transfer"
        host, port = self._network.data_address(placement.prefill, placement.decode)
        order = RedirectOrder(
            request_id=flight.request.id,
            decode_host=host,
            decode_port=port,
            held_tokens=flight.held_tokens,
        )
        flight.ends.redirect("/prefill", order)

    def _instead(self, name: str, view: View) -> str:
        """The engine itself, unless it drains and there is another."""
        engine = self._engines[name]
        other = view.idlest(engine.role, engine.datacenter) if engine.draining else None
        return other.name if other is not None else name

    def _place(self, request: Request, prompt: Prompt | None) -> Placement:
        plan, view = self.plan, self.view()
        if self.caches is not None and prompt is not None:
            view = self.caches.matched(view, prompt)
        placement = self.route(request, view, plan)
        if self.caches is not None and prompt is not None:
            self.caches.asked(prompt, placement.prefill, placement.decode)
        record_routed(self._ledger, request, placement, view, plan)
        return placement

    def _begin(self, flight: _Flight, placement: Placement) -> None:
        """Both engines count it from the moment it was placed, so that of many requests that arrive at once
        each is placed with those before it in view."""
        request, prefill = flight.request, self._engines[placement.prefill]
        decode = self._engines[placement.decode]
        if placement.offloaded:
            flight.way = prefill.datacenter, decode.datacenter
            self.committed[flight.way] += flight.expected_bytes
        flight.decode_hold = Hold(decode, request.id)
        flight.hold = self._prefill_hold(flight, placement)
        flight.stage = "reserve"
        self._flights[request.id] = flight

    def _end(self, flight: _Flight) -> None:
        """Nothing of it goes on, and no engine has it in hand."""
        del self._flights[flight.request.id]
        flight.ends.cancel()
        for hold in (flight.hold, flight.decode_hold):
            if hold is not None:
                hold.release()
        self._crossed(flight)

    def _crossed(self, flight: _Flight) -> None:
        """Its KVCache is not, or no longer, to come over a way between datacenters."""
        if flight.way is not None:
            self.committed[flight.way] -= flight.expected_bytes - self._held(flight)
            flight.way = None

    def _held(self, flight: _Flight) -> int:
        """Bytes of its KVCache that decode holds, so that they need not be sent."""
        if not flight.held_tokens:
            return 0
        return self._expected_bytes(flight.held_tokens) - self._expected_bytes(0)

    def _prefill_hold(self, flight: _Flight, placement: Placement) -> Hold:
        """With what the profile says that its prefill takes; 0 when there is none."""
        engine, tokens, prefill_s = self._engines[placement.prefill], flight.request.prompt_tokens, 0.0
        if self._costs is not None:
            cached_tokens = tokens - placement.uncached_tokens
            prefill_s = self._costs.prefill_s(engine.datacenter, tokens, cached_tokens)
        return Hold(engine, flight.request.id, placement.uncached_tokens, prefill_s)

    async def _prepare(self, flight: _Flight, placement: Placement) -> None:
        """Until decode has memory for it, and what prefill is to resume from has been copied there; or its
        end."""
        ends = flight.ends
        if not flight.reserved:
            flight.when_reserved = asyncio.get_running_loop().create_future()
            await asyncio.wait((flight.when_reserved, ends.over), return_when=asyncio.FIRST_COMPLETED)
        if placement.copy_from and flight.prompt and self.copies and not ends.over.done():
            flight.stage = "copy"
            reason = f"{flight.request.id} resumes from it"
            await self.copies.copy(flight.prompt, placement.copy_from, placement.prefill, reason=reason)

    def _begin_decode(self, flight: _Flight, engine: Engine) -> None:
        request = flight.request
        blocks, tell_all = self._about_cache(flight, engine)
        order = DecodeOrder(
            request_id=request.id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            sampling=request.sampling,
            blocks=blocks,
            tell_all=tell_all,
        )
        flight.ends.begin(engine.client, "/decode", order, partial(self._of_decode, flight, engine))

    def _of_decode(self, flight: _Flight, engine: Engine, stage: dict[str, Any]) -> None:
        match stage["stage"]:
            case "tokens":
                if self._take_tokens(flight, engine, stage["tokens"]):
                    flight.ends.enough("/decode")
            case "reserved":
                flight.held_tokens = stage.get("held_tokens", 0)
                if flight.way is not None:
                    self.committed[flight.way] -= self._held(flight)
                if flight.placement and flight.moving:
                    self._go_on(flight, flight.placement)
                else:
                    flight.reserved = True
                    if flight.when_reserved is not None:
                        flight.when_reserved.set_result(None)
            case "received":
                flight.stage, flight.received = "restore", stage
                self._crossed(flight)
            case "restored":
                flight.stage = "decode"
                record_restored(self._ledger, flight.request, engine, stage)
            case "cache":
                self._learn(engine, "decode", stage)

    def _begin_prefill(self, flight: _Flight, placement: Placement) -> None:
        flight.stage = "prefill"
        request, engine = flight.request, self._engines[placement.prefill]
        host, port = self._network.data_address(placement.prefill, placement.decode)
        blocks, tell_all = self._about_cache(flight, engine)
        order = PrefillOrder(
            request_id=request.id,
            prompt=request.prompt if self._sends_ids else (),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            decode_host=host,
            decode_port=port,
            sampling=request.sampling,
            held_tokens=flight.held_tokens,
            submitted_at=self._ledger.reading(flight.submitted_s),
            since=flight.since,
            blocks=blocks,
            tell_all=tell_all,
        )
        flight.ends.begin(engine.client, "/prefill", order, partial(self._of_prefill, flight, engine))

    def _of_prefill(self, flight: _Flight, engine: Engine, stage: dict[str, Any]) -> None:
        hold = flight.hold
        assert hold is not None, "counted since it was placed"
        match stage["stage"]:
            case "prefilled":
                hold.computed()
                record_prefill(self._ledger, flight.request, engine, stage)
                if not flight.received:
                    flight.stage = "transfer"
            case "withdrawn":
                flight.ends.give_up("/prefill")
                flight.since, flight.moving = stage["since"], "prefill"
                if not flight.ends.over.done():
                    self._move(flight)
            case "unsent":
                flight.moving = "transfer"
                if not flight.ends.over.done():
                    self._move(flight)
            case "sent":
                flight.sent, flight.hold = stage, None
                hold.release()
            case "cache":
                self._learn(engine, "prefill", stage)

    def _about_cache(self, flight: _Flight, engine: Engine) -> tuple[PromptNames | None, bool]:
        """What an order says about the prefix cache: `blocks`, and `tell_all`."""
        if self.caches is None or flight.prompt is None:
            return None, False
        return PromptNames.of(flight.prompt), self.caches.wants_all(engine)

    def _learn(self, engine: Engine, role: Role, news: dict[str, Any]) -> None:
        if self.caches is not None:
            self.caches.learn(engine, role, news)

    def _take_tokens(self, flight: _Flight, engine: Engine, tokens: Any) -> bool:
        """Pass them on; whether the last one wanted is among them."""
        if flight.tokens:
            flight.tokens += tokens
        else:
            flight.tokens = tokens
        self._ledger.record(
            ev.TokensEmitted(
                at_s=self._ledger.now(), request_id=flight.request.id, engine=engine.name, count=len(tokens)
            )
        )
        on_token, stop_ids = flight.on_token, flight.request.sampling.stop_ids
        if on_token is None and not stop_ids:
            return False
        for token in tokens:
            flight.stopped = (on_token is not None and on_token(token) is True) or token in stop_ids
            if flight.stopped:
                return True
        return False

    def _hand_over(self, flight: _Flight, placement: Placement) -> None:
        """Record the transfer as both its ends saw it; hold it to the layout's prediction, and the answer to
        what was asked."""
        sent, received, held_bytes = flight.sent, flight.received, self._held(flight)
        assert sent is not None, "one end is over"
        assert received is not None, "and so is the other"
        record_transfer(self._ledger, flight.request, placement, sent, received, held_bytes)
        self._weigh(sent)
        expected = flight.expected_bytes - held_bytes + HANDOVER_BYTES
        if not sent["bytes"] == received["bytes"] == expected:
            raise EngineError(
                f"the layout predicts {expected} bytes of KVCache, "
                f"{sent['bytes']} were sent and {received['bytes']} received",
                where=f"{placement.prefill} -> {placement.decode}",
            )
        if len(flight.tokens) != flight.request.output_tokens and not flight.stopped:
            raise EngineError(
                f"gave {len(flight.tokens)} of {flight.request.output_tokens} tokens", where=placement.decode
            )

    def _weigh(self, sent: dict[str, Any]) -> None:
        """What compression made of all KVCache so far."""
        self._sent_bytes += sent["bytes"]
        self._wire_bytes += sent.get("wire_bytes", sent["bytes"])
        share = self._wire_bytes / self._sent_bytes
        if share != self._wire_share:
            self._wire_share, self._view = share, None
