"""The hybrid prefix cache pool of a datacenter, and the metadata of all pools.

blocks (names and weights) -> index (what is found) + space (where bytes lie, what goes first) -> pool;
journal (a pool's news) -> directory (who holds what) -> replication (what to copy).
"""

from prfaas_lab.kvcache.blocks import Block, CacheError, Geometry, Prompt, extend_prompt, hash_prompt
from prfaas_lab.kvcache.directory import Directory, Holder
from prfaas_lab.kvcache.eviction import EVICTION_POLICIES
from prfaas_lab.kvcache.futile import FUTILE_S, FutileCopies
from prfaas_lab.kvcache.journal import Delta
from prfaas_lab.kvcache.lease import Lease, Transfer
from prfaas_lab.kvcache.pool import Pool
from prfaas_lab.kvcache.replication import Demand, HotPrefix, Replication, replication_advice
from prfaas_lab.kvcache.snapshots import SNAPSHOT_POLICIES
from prfaas_lab.kvcache.tiers import DirectoryTier, MemoryTier, Payload, Tier
from prfaas_lab.kvcache.values import Inserted, Match, PoolStats

__all__ = [
    "EVICTION_POLICIES", "FUTILE_S", "SNAPSHOT_POLICIES", "Block", "CacheError", "Delta", "Demand",
    "Directory", "DirectoryTier", "FutileCopies", "Geometry", "Holder", "HotPrefix", "Inserted", "Lease",
    "Match", "MemoryTier", "Payload", "Pool", "PoolStats", "Prompt", "Replication", "Tier", "Transfer",
    "extend_prompt", "hash_prompt", "replication_advice",
]  # fmt: skip
