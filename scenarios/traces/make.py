"""Writes the example traces beside it: `python scenarios/traces/make.py`. Same seed, same files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
SLOT_BITS = 12_000


def cellular(random: Random, seconds: int = 10) -> str:
    """mahimahi: a radio link of about 18 Mbit/s that fades every few seconds, and once for 300 ms."""
    slots, owed_bits, fading = [], 0.0, 0.0
    for at_ms in range(1, seconds * 1000 + 1):
        fading = 0.999 * fading + random.gauss(0, 0.02)
        rate_bps = 18e6 * math.exp(fading - 0.1) if not 6000 <= at_ms < 6300 else 0.0
        owed_bits += rate_bps / 1000
        while owed_bits >= SLOT_BITS:
            owed_bits -= SLOT_BITS
            slots.append(at_ms)
    slots.append(seconds * 1000)  # so that it loops at a whole second
    return "".join(f"{at_ms}\n" for at_ms in slots)


def wan_day(random: Random, hours: int = 24) -> str:
    """CSV: what other tenants leave of a 100 Gbit/s link through a day, an hour in 2.5 seconds."""
    rows = ["seconds,bits_per_second"]
    for tick in range(hours * 5):
        hour = tick / 5
        others = 0.45 - 0.3 * math.cos(2 * math.pi * (hour - 4) / 24) + random.gauss(0, 0.04)
        rows.append(f"{tick * 0.5:g},{round(100e9 * min(max(1 - others, 0.05), 1.0), -7):.0f}")
    return "\n".join(rows) + "\n"


def conversations(random: Random, requests: int = 600) -> str:
    """Requests in the format of Mooncake's traces: a hash id stands for 512 tokens and all before them. Half
    go on with one of the last conversations, the others begin anew after a system prompt."""
    lines, open_ones, at_ms, fresh = [], [[0]], 0.0, 1
    for _ in range(requests):
        at_ms += random.expovariate(1 / 600)
        before = random.choice(open_ones) if random.random() < 0.5 else [0]
        new = max(1, round(random.lognormvariate(2.2, 1.0)))
        ids = [*before, *range(fresh, fresh + new)][:240]
        fresh += new
        open_ones = [*open_ones[-40:], ids]
        tokens = 512 * len(ids) - random.randrange(512)
        row = {"timestamp": round(at_ms), "input_length": tokens, "output_length": random.randint(20, 600)}
        lines.append(json.dumps(row | {"hash_ids": ids}))
    return "\n".join(lines) + "\n"


def main() -> None:
    (HERE / "cellular.mahimahi").write_text(cellular(Random(1)))
    (HERE / "wan-day.csv").write_text(wan_day(Random(2)))
    (HERE / "conversations.jsonl").write_text(conversations(Random(3)))


if __name__ == "__main__":
    main()
