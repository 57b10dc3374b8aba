"""The second tier: bounded, verified when read back, and it cleans up behind itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvcache_prompts import GEOMETRY, assert_serves, named, put

from prfaas_lab.kvcache.blocks import CacheError
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.tiers import DirectoryTier, MemoryTier

A, B = [1] * 9, [2] * 9
ONE = 4 * 10 + 30  # a prompt of four blocks and a snapshot


class LosableTier(MemoryTier):
    """A second tier that can go away."""

    lost = False

    def get(self, key: int) -> bytes:
        if self.lost:
            raise CacheError("the disk is gone")
        return bytes(super().get(key))


def test_what_memory_cannot_keep_comes_back_from_disk(tmp_path: Path) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", 1000))
    put(pool, A, 8)
    put(pool, B, 8)
    stats = pool.stats()
    assert (stats.memory_bytes, stats.disk_bytes, stats.spilled) == (ONE, ONE, 5)
    with pool.acquire(named(A)) as lease:
        assert lease.tokens == 8
        assert_serves(lease, A)
    pool.check()
    assert pool.match(named(B)).tokens == 8, "B made room, and lies on disk"


def test_what_a_lookup_will_read_back_is_known_before_it(tmp_path: Path) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", 1000))
    put(pool, A, 8)
    assert pool.on_disk(named(A)) == ()
    put(pool, B, 8)
    keys = pool.on_disk(named(A))
    assert len(keys) == 5
    assert {f"{key:016x}.kv" for key in keys} == {file.name for file in (tmp_path / "kv").iterdir()}
    with pool.acquire(named(A)):
        stats = pool.stats()
        assert (stats.reloaded, stats.disk_hit_tokens) == (5, 8)


def test_the_disk_is_bounded_too(tmp_path: Path) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", ONE))
    for first in range(10):
        put(pool, [first] * 9, 8)
        pool.check()
    files = list((tmp_path / "kv").iterdir())
    assert pool.stats().disk_bytes <= ONE
    assert len(files) <= 5
    assert [pool.match(named([n] * 9)).tokens for n in range(10)].count(8) == 2


def test_blocks_of_no_use_are_not_spilled(tmp_path: Path) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", 1000))
    put(pool, A)
    put(pool, B, 8)
    assert pool.stats().spilled == 0
    assert not list((tmp_path / "kv").iterdir())


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_damaged_files_cost_a_recompute_and_nothing_else(tmp_path: Path, harm: str) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", 1000))
    put(pool, A, 2, 8)
    put(pool, B, 8)
    for file in (tmp_path / "kv").iterdir():
        raw = file.read_bytes()
        if harm == "remove":
            file.unlink()
        else:
            file.write_bytes({"flip": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-1], "empty": b""}[harm])
    with pool.acquire(named(A)) as lease:
        assert lease.tokens == 0
    pool.check()
    assert pool.stats().damaged > 0
    assert put(pool, A, 8).usable_tokens == 8, "and it can be computed and kept again"


def test_tensors_can_be_kept_with_a_codec(tmp_path: Path) -> None:
    tier = DirectoryTier(
        tmp_path / "kv",
        100,
        encode=lambda numbers: bytes(numbers),
        decode=lambda raw: list(raw),
    )
    tier.put(7, [1, 2, 3], 3)
    assert tier.get(7) == [1, 2, 3]


def test_a_full_disk_loses_the_bytes_but_not_the_books(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(folder, 1000))
    put(pool, A, 8)
    folder.rmdir()  # no file can be written there any more
    put(pool, B, 8)
    pool.check()
    assert pool.match(named(B)).tokens == 8
    assert pool.match(named(A)).tokens == 0


def test_a_directory_with_strange_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(CacheError, match="give the cache its own"):
        DirectoryTier(tmp_path, 100)


def test_a_directory_that_cannot_be_made_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file, where a directory would have to be")
    with pytest.raises(CacheError, match="cannot be made: Not a directory") as caught:
        DirectoryTier(tmp_path / "full" / "kv", 100)
    assert "cache.disk" in caught.value.remedy


def test_closing_removes_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    pool = Pool(GEOMETRY, ONE, spill=DirectoryTier(tmp_path / "kv", 1000))
    put(pool, A, 8)
    put(pool, B, 8)
    pool.close()
    assert not (tmp_path / "kv").exists()
    assert tmp_path.exists()


def test_a_memory_tier_stands_in_for_the_disk_in_simulation() -> None:
    pool = Pool(GEOMETRY, ONE, spill=MemoryTier(ONE))
    for tokens in (A, B):
        pool.insert(named(tokens), dict.fromkeys(range(0, 8, 2)), {8: None})
    assert [pool.match(named(p)).tokens for p in (A, B)] == [8, 8]
    pool.check()


def test_losing_the_first_block_of_a_very_long_prompt_loses_all_of_it() -> None:
    """Deeper than Python recurses: 131,072 tokens in blocks of 64."""
    tokens, disk = [1] * 4097, LosableTier(10**6)
    pool = Pool(GEOMETRY, 2048 * 10 + 30, spill=disk)
    put(pool, tokens, 4096)
    pool.stage(None, 2048 * 10 + 30).release()  # all of it lies on disk now
    assert pool.stats().disk_bytes == 2048 * 10 + 30
    disk.lost = True
    assert pool.acquire(named(tokens)).tokens == 0
    pool.check()
    assert (pool.stats().blocks, pool.stats().disk_bytes) == (0, 0)
