"""What a pool tells the global directory: numbered changes, so that a lost one is noticed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What changed in one pool since its delta `version - 1`; with `full`, all that it holds.

    `epoch` tells one life of the pool from the next. The keys are `Block.key`.
    """

    epoch: int
    version: int
    full: bool
    blocks_added: tuple[bytes, ...] = ()
    blocks_dropped: tuple[bytes, ...] = ()
    snapshots_added: tuple[bytes, ...] = ()
    snapshots_dropped: tuple[bytes, ...] = ()


class Journal:
    """Collects net changes until they are drained. Beyond `limit` it gives up the detail, and the
    next delta is a full one: a pool that nobody listens to needs no more memory for that."""

    def __init__(self, *, epoch: int, limit: int) -> None:
        self._epoch, self._limit = epoch, limit
        self._version = 0
        self._pending: dict[tuple[bytes, bool], bool] = {}
        self.overflowed = False

    def note(self, key: bytes, *, is_snapshot: bool, held: bool) -> None:
        if self.overflowed:
            return
        change = (key, is_snapshot)
        # A change and its opposite cancel out: the listener never knew of the first.
        if self._pending.get(change, held) != held:
            del self._pending[change]
        else:
            self._pending[change] = held
        if len(self._pending) > self._limit:
            self._pending.clear()
            self.overflowed = True

    def drain(self) -> Delta:
        """The net changes since the last drain; not to be called after an overflow."""
        assert not self.overflowed
        chosen: dict[tuple[bool, bool], list[bytes]] = {}
        for (key, is_snapshot), held in self._pending.items():
            chosen.setdefault((is_snapshot, held), []).append(key)
        return self._delta(
            full=False,
            blocks=(chosen.get((False, True), []), chosen.get((False, False), [])),
            snapshots=(chosen.get((True, True), []), chosen.get((True, False), [])),
        )

    def restart(self, blocks: list[bytes], snapshots: list[bytes]) -> Delta:
        """A full delta of what is held now."""
        self.overflowed = False
        return self._delta(full=True, blocks=(blocks, []), snapshots=(snapshots, []))

    def _delta(
        self,
        *,
        full: bool,
        blocks: tuple[list[bytes], list[bytes]],
        snapshots: tuple[list[bytes], list[bytes]],
    ) -> Delta:
        self._pending.clear()
        self._version += 1
        return Delta(
            epoch=self._epoch,
            version=self._version,
            full=full,
            blocks_added=tuple(blocks[0]),
            blocks_dropped=tuple(blocks[1]),
            snapshots_added=tuple(snapshots[0]),
            snapshots_dropped=tuple(snapshots[1]),
        )
