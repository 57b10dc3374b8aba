"""What a summary says of requests, added up as they end.

A run of a million requests keeps no record of those that are over: their rows are written, and here
they count. Memory is that of the samples: exact while they are few, sketches beyond.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence

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

    def add(self, several: Sequence[Handover]) -> None:
        self.requests += len(several)
        for samples, column in zip(self.samples.values(), zip(*several, strict=True), strict=False):
            samples.extend(column)


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
        self.input_tokens = self.output_tokens = self.cached_tokens = 0
        self.kvcache_bytes = self.wire_bytes = 0
        self.ttft_ms, self.tpot_ms, self.e2el_ms = (Samples(_EXACT, "d") for _ in range(3))
        self.legs = {"all": Legs(), "offloaded": Legs(), "local": Legs()}
        self.steady = SteadyState()
        self.broken: dict[str, Broken] = {}
        self.failures: Counter[Failure] = Counter()
        self.first_failures: dict[Failure, str] = {}
        self.crossed: Counter[tuple[str, str]] = Counter()
        """What KVCache took on the wire, in bytes, by (source, destination) datacenter."""

    def copy(self) -> Totals:
        return copy.deepcopy(self)

    def add(self, accounts: Sequence[Account], sites: Mapping[str, str], window: Window) -> None:
        """Count requests that are over, or were when the run ended. `sites`: engine -> datacenter;
        `window`: the run's steady state."""
        self.steady.add(accounts, window)
        completed = []
        for account in accounts:
            record = account.record
            for violation in account.violations:
                self._add_violation(violation)
            source, destination = sites.get(record.source or ""), sites.get(record.destination or "")
            if source != destination and source is not None and destination is not None:
                self.crossed[source, destination] += record.wire_bytes
            if record.outcome == "completed":
                completed.append(account)
            elif record.outcome == "failed":
                self._add_failure(record)
        self._add_completed(completed)

    def _add_violation(self, violation: Violation) -> None:
        self.broken.setdefault(violation.kind, Broken()).add(violation.text)

    def _add_failure(self, record: RequestRecord) -> None:
        failure = record.failure_stage, cause(record.failure_reason)
        self.failures[failure] += 1
        self.first_failures.setdefault(failure, record.failure_reason)

    def _add_completed(self, accounts: Sequence[Account]) -> None:
        records = [account.record for account in accounts]
        self.completed += len(records)
        self.input_tokens += sum([record.prompt_tokens for record in records])
        self.output_tokens += sum([record.emitted_tokens for record in records])
        self.cached_tokens += sum([record.cached_tokens or 0 for record in records])
        self.kvcache_bytes += sum([record.received_bytes for record in records])
        self.wire_bytes += sum([record.wire_bytes for record in records])
        self.ttft_ms.extend([each for account in accounts if (each := account.ttft_ms) is not None])
        self.tpot_ms.extend([each for account in accounts if (each := account.tpot_ms) is not None])
        self.e2el_ms.extend([each for account in accounts if (each := account.e2el_ms) is not None])
        legs = [(account.record.offloaded, account.legs) for account in accounts if account.legs is not None]
        self.legs["all"].add([each for _, each in legs])
        self.legs["offloaded"].add([each for offloaded, each in legs if offloaded])
        self.legs["local"].add([each for offloaded, each in legs if not offloaded])
