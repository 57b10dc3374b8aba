"""The directions that a relay's streams share, and how their bytes take turns there."""

from __future__ import annotations

import enum
import math
from collections import deque
from random import Random
from typing import NamedTuple, Protocol

from prfaas_lab.fabric.link_queue import UNLIMITED_BYTES, Conditions, LinkQueue

SEGMENT_BYTES, FRAME_BYTES = 1448, 1514
"""What a full segment carries of a stream, and what a kernel shaper counts for it."""
CHUNK_S = 0.001
"""A stream's turn at the transmitter."""
MAX_CHUNK_BYTES = 65536
_NO_LIMIT_BYTES = 2**62


class Kind(enum.Enum):
    """What crosses a lane besides bytes, as TCP's flags do."""

    OPEN = "open"
    BYTES = "bytes"
    END = "end"
    RESET = "reset"


class Stream(Protocol):
    """One way of one connection."""

    lanes: tuple[Lane, ...]

    def deliver(self, kind: Kind, content: bytes, now: float) -> None:
        """Something has reached the far end."""

    def resume(self, now: float) -> None:
        """There may be room again."""


class Item(NamedTuple):
    stream: Stream
    kind: Kind
    content: bytes
    wire_bytes: int
    hop: int


class Lane:
    """One direction: a queue, and the room that is left in it.

    The relay never drops: it stops reading instead. A stream takes room on all its lanes before it
    reads, so that what is read can always go on.
    """

    def __init__(self, slot: int, conditions: Conditions, random: Random) -> None:
        self.slot, self.taken_bytes = slot, 0
        self.queue: LinkQueue[Item] = LinkQueue(conditions._replace(limit_bytes=_NO_LIMIT_BYTES), random)
        self._waiting: deque[Stream] = deque()
        self._apply(conditions)

    @property
    def room_bytes(self) -> int:
        """Wire bytes that may be read now; one segment always, when nothing is under way."""
        least = FRAME_BYTES if self.taken_bytes == 0 else 0
        return max(self._limit_bytes - self.taken_bytes, least)

    def change(self, conditions: Conditions, now: float) -> None:
        self.queue.change(conditions._replace(limit_bytes=_NO_LIMIT_BYTES), now)
        self._apply(conditions)
        self.wake(now)

    def wait(self, stream: Stream) -> None:
        """Call the stream's `resume` when there is room, after those that came before."""
        self._waiting.append(stream)

    def release(self, now: float) -> None:
        """Move on what is due, and wake those who wait for its room."""
        for item in self.queue.release(now):
            self.taken_bytes -= item.wire_bytes
            go(item._replace(hop=item.hop + 1), now)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Let each of those who wait try once; whoever finds no room waits again, behind the others."""
        for _ in range(len(self._waiting)):
            if self.room_bytes < FRAME_BYTES:
                return
            self._waiting.popleft().resume(now)

    def _apply(self, conditions: Conditions) -> None:
        rate_bps = math.inf if conditions.rate_bps is None else conditions.rate_bps
        self._limit_bytes = UNLIMITED_BYTES if conditions.limit_bytes is None else conditions.limit_bytes
        self.chunk_bytes = int(max(FRAME_BYTES, min(rate_bps * CHUNK_S / 8, MAX_CHUNK_BYTES)))


def turn(lanes: tuple[Lane, ...]) -> tuple[int, Lane | None]:
    """(bytes, None) that a stream may read now, or (0, the lane that has no room)."""
    wire_bytes = MAX_CHUNK_BYTES
    for lane in lanes:
        wire_bytes = min(wire_bytes, lane.chunk_bytes, lane.room_bytes)
        if wire_bytes < FRAME_BYTES:
            return 0, lane
    return wire_bytes * SEGMENT_BYTES // FRAME_BYTES, None


def send(stream: Stream, kind: Kind, content: bytes, now: float) -> None:
    """Take room on all lanes of a stream, and enter the first."""
    segments = max(1, -(-len(content) // SEGMENT_BYTES))
    wire_bytes = len(content) + segments * (FRAME_BYTES - SEGMENT_BYTES)
    for lane in stream.lanes:
        lane.taken_bytes += wire_bytes
    go(Item(stream, kind, content, wire_bytes, 0), now)


def go(item: Item, now: float) -> None:
    """Enter the next lane, or arrive."""
    if item.hop == len(item.stream.lanes):
        item.stream.deliver(item.kind, item.content, now)
        return
    item.stream.lanes[item.hop].queue.offer(item, item.wire_bytes, 1, now, now)
