"""Copies that came to nothing, remembered so that not every request that begins alike repeats them."""

from __future__ import annotations

from prfaas_lab.kvcache.blocks import Prompt

FUTILE_S = 60.0
"""For so long a copy that failed, or found no room, is not tried again."""

_Copy = tuple[bytes, str, str]


class FutileCopies:
    """Of prefixes, each from one place to another: engines, or datacenters, by name."""

    def __init__(self) -> None:
        self._until_s: dict[_Copy, float] = {}

    def add(self, prefix: Prompt, source: str, destination: str, now_s: float) -> None:
        """A copy of all blocks of `prefix` was futile at `now_s` (never less than before)."""
        self._forget_past(now_s)
        copy = prefix.blocks[-1].key, source, destination
        self._until_s.pop(copy, None)
        self._until_s[copy] = now_s + FUTILE_S

    def among(self, prompt: Prompt, now_s: float) -> frozenset[tuple[str, str]]:
        """From where to where a beginning of `prompt` was lately copied in vain: more of it would be too."""
        self._forget_past(now_s)
        if not self._until_s:
            return frozenset()
        keys = {block.key for block in prompt.blocks}
        return frozenset((source, end) for key, source, end in self._until_s if key in keys)

    def _forget_past(self, now_s: float) -> None:
        """The dict is in the order of time."""
        while self._until_s and next(iter(self._until_s.values())) <= now_s:
            del self._until_s[next(iter(self._until_s))]
