"""Which prefixes are hot, and where a copy of them would pay: measured demand, then pure advice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prfaas_lab.kvcache.blocks import Geometry, Prompt
from prfaas_lab.kvcache.directory import Directory


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPrefix:
    """A prefix that some datacenter can resume from, and how often requests that begin with it come
    to each datacenter. `held_tokens` says how much of it each datacenter has in usable form.
    `prompt` is the prefix as a pool's `acquire` takes it."""

    prompt: Prompt
    requests_per_s: Mapping[str, float]
    held_tokens: Mapping[str, int]

    @property
    def tokens(self) -> int:
        return len(self.prompt.blocks) * self.prompt.block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """Advice: copy a prefix from one datacenter to another. `bytes` is what crosses: the blocks that
    are missing there, and the snapshot."""

    prompt: Prompt
    source: str
    destination: str
    bytes: int
    saved_s: float
    cost_s: float


class Demand:
    """How often prefixes are asked for, with exponential forgetting: a use counts half after
    `half_life_s`. At most `limit` prefixes are kept; the coldest make room."""

    def __init__(self, *, half_life_s: float = 60.0, limit: int = 1024) -> None:
        assert half_life_s > 0
        assert limit > 0
        self._half_life_s, self._limit = half_life_s, limit
        self._seen: dict[bytes, _Prefix] = {}

    def observe(self, prompt: Prompt, datacenter: str, now_s: float, directory: Directory) -> None:
        """A request for `prompt` came to `datacenter` at `now_s` (never less than before). It counts
        for every beginning that someone can resume from: a system prompt is hot though each session
        that shares it goes on to a longer prefix of its own."""
        for tokens in directory.boundaries(prompt):
            whole = prompt.beginning(tokens // prompt.block_tokens)
            key = whole.blocks[-1].key
            prefix = self._seen.get(key)
            if prefix is None:
                self._make_room(now_s)
                prefix = self._seen[key] = _Prefix(whole, now_s)
            prefix.fade(now_s, self._half_life_s)
            prefix.uses[datacenter] = prefix.uses.get(datacenter, 0.0) + 1.0

    def hottest(self, now_s: float, directory: Directory, *, count: int = 16) -> tuple[HotPrefix, ...]:
        """The most wanted prefixes that are still held somewhere, most wanted first."""
        for prefix in self._seen.values():
            prefix.fade(now_s, self._half_life_s)
        # A steady stream of r uses a second sums up to r x half-life / ln 2 while it fades.
        per_second = math.log(2) / self._half_life_s
        found: list[HotPrefix] = []
        for _, prefix in sorted(self._seen.items(), key=lambda entry: (-entry[1].total, entry[0])):
            if len(found) == count:
                break
            held = directory.match(prefix.prompt)
            if any(held.values()):
                rates = {name: uses * per_second for name, uses in prefix.uses.items()}
                found.append(HotPrefix(prompt=prefix.prompt, requests_per_s=rates, held_tokens=held))
        return tuple(found)

    def _make_room(self, now_s: float) -> None:
        if len(self._seen) >= self._limit:
            for prefix in self._seen.values():
                prefix.fade(now_s, self._half_life_s)
            # A quarter at once, so that a flood of new prefixes does not sort on every request.
            coldest = sorted(self._seen, key=lambda key: self._seen[key].total)
            for key in coldest[: max(1, self._limit // 4)]:
                del self._seen[key]


class _Prefix:
    """A prefix, and its uses per datacenter as they count at `seen_s`."""

    __slots__ = ("prompt", "seen_s", "uses")

    def __init__(self, prompt: Prompt, seen_s: float) -> None:
        self.prompt, self.seen_s = prompt, seen_s
        self.uses: dict[str, float] = {}

    @property
    def total(self) -> float:
        return sum(self.uses.values())

    def fade(self, now_s: float, half_life_s: float) -> None:
        kept = 0.5 ** ((now_s - self.seen_s) / half_life_s)
        self.uses = {name: uses * kept for name, uses in self.uses.items()}
        self.seen_s = now_s


def replication_advice(
    hot: Iterable[HotPrefix],
    *,
    geometry: Geometry,
    prefill_s_per_token: Mapping[str, float],
    rate_bps: Mapping[tuple[str, str], float],
    horizon_s: float = 60.0,
    margin: float = 2.0,
) -> tuple[Replication, ...]:
    """Copies that pay, best first.

    A copy saves, within `horizon_s`, the prefill of the tokens that the destination lacks, once per
    request that comes there; it costs the time its bytes take on the link. It is advised when it saves
    more than `margin` times its cost, and only to datacenters that prefill (`prefill_s_per_token`)
    over links that are up (`rate_bps` by source and destination, 0 or absent: none).
    """
    copies = []
    for prefix in hot:
        for destination in prefix.requests_per_s.keys() & prefill_s_per_token.keys():
            copy = _copy(prefix, destination, geometry, prefill_s_per_token[destination], rate_bps, horizon_s)
            if copy is not None and copy.saved_s > margin * copy.cost_s:
                copies.append(copy)
    copies.sort(key=lambda copy: (copy.cost_s - copy.saved_s, copy.prompt.blocks[-1].key, copy.destination))
    advice: list[Replication] = []
    for copy in copies:
        if not any(_nested(copy, other) for other in advice):
            advice.append(copy)
    return tuple(advice)


def _copy(
    prefix: HotPrefix,
    destination: str,
    geometry: Geometry,
    prefill_s_per_token: float,
    rate_bps: Mapping[tuple[str, str], float],
    horizon_s: float,
) -> Replication | None:
    source = _best_source(prefix, destination, rate_bps)
    missing = prefix.tokens - prefix.held_tokens.get(destination, 0)
    if source is None or missing <= 0:
        return None
    size = missing // geometry.block_tokens * geometry.block_bytes + geometry.snapshot_bytes
    return Replication(
        prompt=prefix.prompt,
        source=source,
        destination=destination,
        bytes=size,
        saved_s=prefix.requests_per_s[destination] * horizon_s * missing * prefill_s_per_token,
        cost_s=size * 8 / rate_bps[source, destination],
    )


def _nested(one: Replication, other: Replication) -> bool:
    """Whether two copies to one place overlap: the first changes what the second is worth, which the
    next round will know."""
    if one.destination != other.destination:
        return False
    short, long = sorted((one.prompt.blocks, other.prompt.blocks), key=len)
    return long[: len(short)] == short


def _best_source(
    prefix: HotPrefix, destination: str, rate_bps: Mapping[tuple[str, str], float]
) -> str | None:
    """The datacenter that holds all of the prefix and reaches `destination` fastest."""
    sources = [
        name
        for name, held in prefix.held_tokens.items()
        if held >= prefix.tokens and name != destination and rate_bps.get((name, destination), 0.0) > 0
    ]
    return max(sources, key=lambda name: (rate_bps[name, destination], name), default=None)
