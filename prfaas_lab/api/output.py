"""One output's text as its tokens come: detokenised, cut at a stop string, and never ahead of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prfaas_lab.api.tokenizer import Detokenizer

Finish = Literal["length", "stop"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, as text that may be empty. The last one says why it is."""

    token: int
    text: str
    finish: Finish | None


class StopStrings:
    """Lets text pass up to a stop string, and holds back what may be the beginning of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def put(self, text: str) -> str:
        """What may be shown now."""
        text = self._held + text
        at = min((i for s in self._strings if (i := text.find(s)) >= 0), default=-1)
        if at >= 0:
            self.found, self._held = True, ""
            return text[:at]
        keep = max((_overlap(text, s) for s in self._strings), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown

    def end(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first of a stop string, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Output:
    """Takes tokens, gives pieces. The token that ends an output has no text of its own."""

    def __init__(
        self, detokenizer: Detokenizer, *, output_tokens: int, stop_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._detokenizer, self._stop = detokenizer, StopStrings(stop)
        self._left, self._stop_ids = output_tokens, frozenset(stop_ids)

    def take(self, token: int) -> Piece:
        self._left -= 1
        if token in self._stop_ids:
            return Piece(token, self._rest(""), "stop")
        text = self._detokenizer.put(token)
        if self._left == 0:
            text = self._rest(text)
            return Piece(token, text, "stop" if self._stop.found else "length")
        text = self._stop.put(text)
        return Piece(token, text, "stop" if self._stop.found else None)

    def _rest(self, text: str) -> str:
        shown = self._stop.put(text + self._detokenizer.end())
        return shown if self._stop.found else shown + self._stop.end()
