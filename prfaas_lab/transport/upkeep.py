"""What becomes of the connections to a peer and their transfers as time passes: deadlines, samples of
the path, and copies of what one connection holds for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from prfaas_lab.transport.congestion import ConnectionSample, PathMonitor, read_connection
from prfaas_lab.transport.dial import name_of
from prfaas_lab.transport.errors import PeerLost, TransferTimeout
from prfaas_lab.transport.frames import Kind
from prfaas_lab.transport.limits import Limits

if TYPE_CHECKING:
    from prfaas_lab.transport.route import Route

_OVERTAKE_INTERVAL_S = 0.025
_OVERTAKE_PATIENCE_S = 0.05
"""A frame has had its chance after two round trips and this: twice what it waits in the kernel."""


class Upkeep:
    """Looks after one route. `watch`, `sample` and `overtake` run as long as the route is open."""

    def __init__(self, route: Route, settings: Limits, clock: Callable[[], float]) -> None:
        self._route, self._settings, self._clock = route, settings, clock
        self._loop = asyncio.get_running_loop()
        self._monitor = PathMonitor()

    async def watch(self) -> None:
        settings = self._settings
        shortest_s = min(settings.progress_timeout_s, settings.reconnect_timeout_s, settings.stream_timeout_s)
        while True:
            await asyncio.sleep(min(shortest_s / 4, 1.0))
            now = self._loop.time()
            self._drop_stalled(now)
            self._end_overdue(now)
            self._keep_alive()

    async def sample(self) -> None:
        """Read the kernel's view of every connection. Bytes that it got acknowledged are progress,
        also while the frame they belong to is not whole."""
        while True:
            await asyncio.sleep(self._settings.sample_interval_s)
            now, route = self._loop.time(), self._route
            samples: dict[object, ConnectionSample] = {}
            for stream in route.streams:
                sample = samples[stream] = read_connection(stream.sock)
                if stream.note_acked(sample.acked_bytes, now):
                    route.progress_at = now
                if sample.delivery_rate_bps:
                    stream.tune(self._settings.frame_bytes_at(sample.delivery_rate_bps))
            backlog_bytes = sum(t.enqueued_bytes - t.acked_bytes for t in route.transfers.values())
            route.path = self._monitor.observe(self._clock(), samples, backlog_bytes=backlog_bytes)

    async def overtake(self) -> None:
        """With nothing new to send and a connection idle, send again what another has held for long:
        a lost packet on one connection then delays a transfer by a round trip, not by its timeout."""
        while True:
            await asyncio.sleep(_OVERTAKE_INTERVAL_S)
            if self._route.waiting or not any(not s.unacked_bytes for s in self._route.streams):
                continue
            path = self._route.path
            round_trips_s = path.rtt_s + path.min_rtt_s if path is not None else 0.0
            patience_s = round_trips_s + _OVERTAKE_PATIENCE_S
            self._overtake_frames(patience_s)
            self._overtake_finishes(self._loop.time() - patience_s)

    def _overtake_frames(self, patience_s: float) -> None:
        """Of connections that stand still: one that moves is slow because the path is full, and a copy would
        fill it further. Each copy under way doubles the patience with the next."""
        now = self._loop.time()
        still_since = now - patience_s - 2 * self._settings.sample_interval_s
        for stream in self._route.streams:
            for frame in stream.overdue(now - patience_s) if stream.progress_at < still_since else ():
                fate, outgoing = frame.fate, frame.outgoing
                if not outgoing.ended and fate.tried_at < now - patience_s * 2 ** (fate.copies - 1):
                    fate.tried_at = now
                    outgoing.again(frame.copy())
                    self._route.ready(outgoing)

    def _overtake_finishes(self, before: float) -> None:
        for outgoing in self._route.transfers.values():
            if outgoing.finish_is_overdue(before):
                outgoing.finish_again()
                self._route.ready(outgoing)

    def _drop_stalled(self, now: float) -> None:
        """One connection hangs, while others moved after it stopped or have nothing left to do: its
        frames go to them."""
        route = self._route
        waiting = [stream for stream in route.streams if stream.unacked_bytes]
        for stream in waiting if len(route.streams) > 1 else ():
            alone = len(waiting) == 1 or route.progress_at > stream.progress_at
            if alone and now - stream.progress_at > self._settings.stream_timeout_s:
                route.lost(stream, PeerLost("a connection made no progress"))

    def _end_overdue(self, now: float) -> None:
        route, where = self._route, name_of(self._route.peer)
        if not route.streams:
            if now - route.alone_since > self._settings.reconnect_timeout_s:
                route.fail_all(PeerLost("every connection was lost, and none came back", where=where))
            return
        if now - route.progress_at <= self._settings.progress_timeout_s:
            return
        for outgoing in list(route.transfers.values()):
            if outgoing.unfinished:
                error = TransferTimeout(
                    f"{outgoing.transfer_id} made no progress for {self._settings.progress_timeout_s:g} s",
                    where=where,
                )
                outgoing.fail(error, tell_peer=True)

    def _keep_alive(self) -> None:
        """A transfer that waits for its prefill says so, lest the receiver takes us for dead. One that lost
        every connection it was on has nothing to send that would bring it onto another."""
        for outgoing in self._route.transfers.values():
            if not outgoing.unfinished:
                for stream in self._route.streams:
                    if outgoing in stream.attached:
                        stream.push(outgoing.control_frame(Kind.ALIVE))
                        break
                else:
                    self._route.attach(outgoing)
