"""What a request holds of a pool: cached bytes it may read, or bytes of its own in transit."""

from __future__ import annotations

from types import TracebackType

from prfaas_lab.kvcache.index import Item
from prfaas_lab.kvcache.space import Space
from prfaas_lab.kvcache.tiers import Payload


class _Held:
    """Something to let go of exactly once, by `release` or by `with`."""

    def __init__(self) -> None:
        self._open = True

    def release(self) -> None:
        """Let go. Twice is a bug."""
        assert self._open, "released once already"
        self._open = False
        self._let_go()

    def _let_go(self) -> None:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.release()


class Lease(_Held):
    """A hit, pinned in memory. `tokens` is its length (0: nothing was found), `blocks` the payloads of
    its blocks in order, `snapshot` that of the state at its end: to be read, never written."""

    def __init__(self, space: Space, tokens: int, items: tuple[Item, ...]) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = tuple(space.payload(item) for item in items if not item.is_snapshot)
        states = [space.payload(item) for item in items if item.is_snapshot]
        self.snapshot: Payload = states[0] if states else None
        self._space, self._items = space, items

    def __enter__(self) -> Lease:
        return self

    def _let_go(self) -> None:
        self.blocks, self.snapshot = (), None
        self._space.unpin(reversed(self._items))


class Transfer(_Held):
    """A transfer-cache entry: bytes of any length on their way, gone once handed over."""

    def __init__(self, space: Space, serial: int, payload: Payload, size_bytes: int) -> None:
        super().__init__()
        self.payload, self.size_bytes = payload, size_bytes
        self._space, self._serial = space, serial

    def __enter__(self) -> Transfer:
        return self

    def grow(self, more_bytes: int) -> None:
        """So many bytes more of it have come. Raises CacheError when they do not fit beside what is pinned:
        it is as large as before then."""
        self._space.grow_loose(self._serial, self.payload, more_bytes)
        self.size_bytes += more_bytes

    def _let_go(self) -> None:
        self.payload = None
        self._space.drop_loose(self._serial)
