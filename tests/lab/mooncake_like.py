"""A trace in Mooncake's format of our own: sessions that share beginnings, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def rows(count: int, *, seed: int = 3, gap_ms: int = 400) -> list[dict[str, object]]:
    """Prompts that grow from earlier ones, or begin anew; some end within a block."""
    draw, found, known, fresh = np.random.default_rng(seed), [], [[0, 1]], 1000
    for number in range(count):
        mother = known[draw.integers(len(known))]
        new = list(range(fresh, fresh := fresh + int(draw.integers(1, 6))))
        ids = [*mother[: draw.integers(1, len(mother) + 1)], *new]
        known = [*known[-7:], ids]
        found.append(
            {
                "timestamp": gap_ms * number,
                "input_length": 512 * len(ids) - int(draw.integers(0, 2)) * 100,
                "output_length": int(draw.integers(1, 40)),
                "hash_ids": ids,
            }
        )
    return found


def write(path: Path, trace: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in trace))
    return path
