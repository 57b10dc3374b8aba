"""What a summary says of requests, added up one ended request at a time.

A run of a million requests keeps no record of those that are over: their rows are written, and here
they count. Memory is that of the samples: exact while they are few, sketches beyond.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

from prfaas_lab.metrics.handover import LEGS, Account, Handover, Violation
from prfaas_lab.metrics.percentiles import Samples
from prfaas_lab.metrics.requests import RequestRecord, cause
from prfaas_lab.metrics.steady import SteadyState, Window

_EXACT = 100_000
_SHOWN = 2

Failure = tuple[str, str]
"""(stage, cause without its figures)."""


class Legs:
    """The hand-over legs of one group of requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.samples = {leg: Samples(_EXACT, "d") for leg in LEGS}

    def add(self, legs: Handover) -> None:
        self.requests += 1
        for leg, samples in self.samples.items():
            samples.add(getattr(legs, leg))


class Broken:
    """Requests that broke one kind of law: how many times, and the first few in words."""

    def __init__(self) -> None:
        self.count = 0
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.texts) <= _SHOWN:
            self.texts.append(text)


class Totals:
    """Sums over requests. Latencies and tokens are those of completed ones."""

    def __init__(self) -> None:
        self.completed = 0
        self.input_tokens = self.output_tokens = self.cached_tokens = self.kvcache_bytes = 0
        self.ttft_ms, self.tpot_ms, self.e2el_ms = (Samples(_EXACT, "d") for _ in range(3))
        self.legs = {"all": Legs(), "offloaded": Legs(), "local": Legs()}
        self.steady = SteadyState()
        self.broken: dict[str, Broken] = {}
        self.failures: Counter[Failure] = Counter()
        self.first_failures: dict[Failure, str] = {}
        self.payloads: Counter[tuple[str, str]] = Counter()
        """KVCache bytes that crossed, by (source, destination) datacenter."""

    def copy(self) -> Totals:
        return copy.deepcopy(self)

    def add(self, account: Account, sites: Mapping[str, str], window: Window) -> None:
        """Count a request that is over, or was when the run ended. `sites`: engine -> datacenter;
        `window`: the run's steady state."""
        record = account.record
        self.steady.add(record, window)
        for violation in account.violations:
            self._add_violation(violation)
        ends = sites.get(record.source or ""), sites.get(record.destination or "")
        if ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
            self.payloads[ends[0], ends[1]] += record.received_bytes
        if record.outcome == "completed":
            self._add_completed(record, account.legs)
        elif record.outcome == "failed":
            failure = record.failure_stage, cause(record.failure_reason)
            self.failures[failure] += 1
            self.first_failures.setdefault(failure, record.failure_reason)

    def _add_violation(self, violation: Violation) -> None:
        self.broken.setdefault(violation.kind, Broken()).add(violation.text)

    def _add_completed(self, record: RequestRecord, legs: Handover | None) -> None:
        self.completed += 1
        self.input_tokens += record.prompt_tokens
        self.output_tokens += record.emitted_tokens
        self.cached_tokens += record.cached_tokens or 0
        self.kvcache_bytes += record.received_bytes
        latencies = (
            (self.ttft_ms, record.ttft_s),
            (self.tpot_ms, record.tpot_s),
            (self.e2el_ms, record.e2el_s),
        )
        for samples, value_s in latencies:
            if value_s is not None:
                samples.add(1e3 * value_s)
        if legs is not None:
            self.legs["all"].add(legs)
            self.legs["offloaded" if record.offloaded else "local"].add(legs)
