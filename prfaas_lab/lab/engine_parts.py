"""What engines of either role are put together from: their cache and their ends of the transport."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.spill import SpillTier
from prfaas_lab.lab.orders import EngineOrder
from prfaas_lab.model.layout import CacheLayout
from prfaas_lab.transport import KVReceiver, KVSender, Limits
from prfaas_lab.transport.codec import codec_for

End = TypeVar("End", KVSender, KVReceiver)


def end_of(kind: type[End], order: EngineOrder, layout: CacheLayout) -> End:
    """One end of its transfers; neither connected nor listening yet."""
    return kind(
        key=bytes.fromhex(order.key_hex),
        fingerprint=layout.fingerprint,
        settings=Limits.of(order.transport, order.path),
        codec=codec_for(order.transport.compression, layout),
        clock=time.monotonic,
    )


def cache_of(order: EngineOrder, layout: CacheLayout, *, resumable: bool) -> PrefixCache | None:
    """What it keeps prefixes in, if it does: for prefill one to resume from, for decode blocks alone."""
    share = order.cache
    if share is None:
        return None
    spill = None
    if share.disk_bytes and share.disk_path:
        path = Path(share.disk_path) / order.name / ("prefill" if resumable else "decode")
        spill = SpillTier(path, share.disk_bytes)
    return PrefixCache.of(
        layout,
        share.memory_bytes,
        spill=spill,
        resumable=resumable,
        snapshots=share.settings.snapshots,
        snapshot_every=share.settings.snapshot_every,
        eviction=share.settings.eviction,
    )
