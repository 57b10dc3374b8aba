"""Claims about the second tier of an engine: nothing waits for it, and what comes back is what went."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas_lab.engine.kept import Kept
from prfaas_lab.engine.spill import SpillTier, decode, encode
from prfaas_lab.kvcache import CacheError
from prfaas_lab.model.layout import SegmentKey


def kept(number: int, size: int = 100) -> Kept:
    segments = [(SegmentKey(layer, 0, number), memoryview(bytes([number, layer]) * size)) for layer in (0, 3)]
    return Kept(segments, decoded=bool(number % 2))


def same(one: Kept, other: Kept) -> bool:
    return (one.segments, one.decoded, one.digest) == (other.segments, other.decoded, other.digest)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[SpillTier]:
    made = SpillTier(tmp_path / "kv", 10_000, unwritten_bytes=2_000)
    yield made
    made.close()
    assert not (tmp_path / "kv").exists()


def settle(tier: SpillTier) -> None:
    """Until everything asked for so far is done."""
    tier._writer.submit(lambda: None).result()


def test_an_entry_survives_the_way_to_the_disk_and_back(tier: SpillTier) -> None:
    for number in range(4):
        tier.put(number, kept(number), 400)
    assert all(same(tier.get(number), kept(number)) for number in range(4)), "before it is written"
    settle(tier)
    assert all(same(tier.get(number), kept(number)) for number in range(4)), "and after"
    assert tier.used_bytes == 1600


def test_the_checksum_is_that_of_the_time_when_it_was_taken_in() -> None:
    spoiled = kept(1)
    spoiled.segments = ((spoiled.segments[0][0], memoryview(b"another")), *spoiled.segments[1:])
    assert not decode(encode(spoiled)).intact
    assert decode(encode(kept(1))).intact
    with pytest.raises(CacheError):
        decode(encode(kept(1))[:20])


async def test_what_was_read_ahead_is_served_from_memory(tier: SpillTier, tmp_path: Path) -> None:
    tier.put(1, kept(1), 400)
    settle(tier)
    await tier.read_ahead((1,))
    next((tmp_path / "kv").iterdir()).write_bytes(b"gone bad since")
    assert same(tier.get(1), kept(1))
    tier.let_go((1,))
    with pytest.raises(CacheError, match="damaged"):
        tier.get(1)


async def test_a_slow_disk_makes_nobody_wait_and_is_not_let_fall_behind(tier: SpillTier) -> None:
    gate = threading.Event()
    tier._writer.submit(gate.wait)
    for number in range(5):
        tier.put(number, kept(number), 400)
    with pytest.raises(CacheError, match="too slow"):
        tier.put(5, kept(5), 400)
    tier.drop(0)
    tier.put(6, kept(6), 400)
    assert same(tier.get(6), kept(6))
    gate.set()
    settle(tier)
    assert tier.used_bytes == 5 * 400
    assert len(list(tier._files._path.iterdir())) == 5, "what was dropped is not there"


def test_a_file_that_could_not_be_written_is_found_out_when_it_is_asked_for(
    tier: SpillTier, tmp_path: Path
) -> None:
    (tmp_path / "kv").rmdir()
    tier.put(1, kept(1), 400)
    settle(tier)
    with pytest.raises(CacheError):
        tier.get(1)
    tier.drop(1)
    (tmp_path / "kv").mkdir()
