"""Claims about the second tier of an engine: nothing waits for it, and what comes back is what went."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prfaas_lab.engine.kept import Kept
from prfaas_lab.engine.paced_executor import PacedPrefill
from prfaas_lab.engine.prefill import PrefillEngine, PrefillJob
from prfaas_lab.engine.prefix_cache import PrefixCache
from prfaas_lab.engine.spill import SpillTier, decode, encode
from prfaas_lab.kvcache import CacheError, Prompt, hash_prompt
from prfaas_lab.model.layout import SegmentKey
from prfaas_lab.model.paced_layout import paced_layout
from prfaas_lab.model.profile import find_profile

CHUNK = 64
LAYOUT = paced_layout(6, 600, CHUNK)


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
    for worker in (tier._writer, tier._reader):
        worker.submit(lambda: None).result()


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


def named(tokens: Sequence[int]) -> Prompt:
    return hash_prompt(tokens, block_tokens=CHUNK, namespace=b"test")


def with_one_on_the_disk(tier: SpillTier) -> tuple[PrefixCache, Prompt]:
    """A cache that had to make room, and the prompt whose five blocks and state did."""
    cache = PrefixCache.of(LAYOUT, 3200, resumable=True, spill=tier)
    spilled, other = named(range(5 * CHUNK + 1)), named(range(1000, 1000 + 6 * CHUNK + 1))
    for prompt in (spilled, other):
        blocks = {number * CHUNK: kept(number) for number in range(len(prompt.blocks))}
        cache.pool.insert(prompt, blocks, {len(prompt.blocks) * CHUNK: kept(99)})
    settle(tier)
    assert len(cache.pool.on_disk(spilled)) == 6
    return cache, spilled


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


async def test_what_was_spilled_read_and_spilled_again_before_it_was_written_is_on_the_disk(
    tier: SpillTier,
) -> None:
    gate = threading.Event()
    tier._writer.submit(gate.wait)
    tier.put(1, kept(1), 400)
    again = tier.get(1)
    tier.drop(1)
    tier.put(1, again, 400)
    gate.set()
    settle(tier)
    assert same(tier.get(1), kept(1))
    assert tier._unwritten_bytes == 0


async def test_a_lookup_that_is_given_up_while_it_reads_ahead_leaves_nothing_in_memory(
    tmp_path: Path,
) -> None:
    tier = SpillTier(tmp_path / "kv", 10_000)
    cache, spilled = with_one_on_the_disk(tier)
    gate = threading.Event()
    tier._reader.submit(gate.wait)

    async def look() -> None:
        async with cache.at_hand(spilled):
            raise AssertionError("nothing was read yet")

    looking = asyncio.ensure_future(look())
    await asyncio.sleep(0)
    looking.cancel()
    await asyncio.wait([looking])
    assert looking.cancelled()
    gate.set()
    settle(tier)
    assert not tier._read
    assert not tier._wanted
    cache.close()


async def test_what_one_lookup_lets_go_another_still_has_at_hand(tier: SpillTier, tmp_path: Path) -> None:
    tier.put(1, kept(1), 400)
    settle(tier)
    await tier.read_ahead((1,))
    await tier.read_ahead((1,))
    tier.let_go((1,))
    next((tmp_path / "kv").iterdir()).write_bytes(b"not looked at")
    assert same(tier.get(1), kept(1))
    tier.let_go((1,))
    assert not tier._read


async def test_to_keep_what_goes_on_from_spilled_blocks_the_event_loop_reads_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks of the prompt are on the disk, and no state that it could resume from."""
    tier = SpillTier(tmp_path / "kv", 100_000)
    cache, _ = with_one_on_the_disk(tier)
    shared = (*range(2 * CHUNK), *range(5000, 5000 + 3 * CHUNK + 1))
    readers: list[str] = []

    def get(key: int, read: object = tier._files.get) -> object:
        readers.append(threading.current_thread().name)
        return read(key)  # type: ignore[operator]

    monkeypatch.setattr(tier._files, "get", get)
    executor = PacedPrefill(find_profile("8xH20"), LAYOUT, time_scale=1e-4, rng=random.Random(1))
    async with PrefillEngine(executor, max_queue=9, clock=time.monotonic, cache=cache) as engine:
        job = PrefillJob(request_id="r", prompt=range(len(shared)), blocks=named(shared))
        result = await engine.run(job, lambda key, segment: None)
    assert result.cached_tokens == 0
    assert cache.pool.match(named(shared)).tokens == 5 * CHUNK
    assert len(readers) == 2
    assert all(name.startswith("reload") for name in readers)
    cache.pool.check()
    cache.close()


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
