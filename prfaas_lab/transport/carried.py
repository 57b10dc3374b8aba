"""A frame as connections carry it: to one of them, again where that fails, and to a second that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prfaas_lab.transport.frames import Bytes, Kind

if TYPE_CHECKING:
    from prfaas_lab.transport.outgoing import Outgoing


@dataclass(slots=True)
class Fate:
    """What became of a frame, shared by all its copies."""

    copies: int = 1
    """Queued, or on a connection and neither acknowledged nor failed."""
    has_arrived: bool = False
    tried_at: float = 0.0
    """When a connection last took one."""


class Frame:
    """A piece of work for a connection: a header, and views of the caller's memory.

    A frame that is slow to arrive may be copied to another connection; the first to arrive counts.
    """

    __slots__ = ("attempts", "fate", "header", "kind", "outgoing", "payload_bytes", "payloads")

    def __init__(
        self,
        outgoing: Outgoing,
        kind: Kind,
        header: bytes,
        payloads: Sequence[Bytes] = (),
        payload_bytes: int = 0,
    ) -> None:
        self.outgoing, self.kind, self.header = outgoing, kind, header
        self.payloads, self.payload_bytes = payloads, payload_bytes
        self.attempts = 0
        self.fate = Fate()

    @property
    def size_bytes(self) -> int:
        return len(self.header) + self.payload_bytes

    def copy(self) -> Frame:
        """The same frame, for another connection."""
        copy = Frame(self.outgoing, self.kind, self.header, self.payloads, self.payload_bytes)
        copy.attempts, copy.fate = self.attempts, self.fate
        return copy

    def arrived(self) -> bool:
        """True for the first copy that the receiver has."""
        is_first, self.fate.has_arrived = not self.fate.has_arrived, True
        self.fate.copies -= 1
        return is_first

    def failed(self) -> bool:
        """True when it has to go again: no copy arrived, and none is under way."""
        self.fate.copies -= 1
        return not self.fate.has_arrived and self.fate.copies == 0
