"""The events of a run that never was: plausible, seeded, and obeying every law."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from prfaas_lab.metrics import events as ev

ENGINES = (
    ("east-p0", "east", "prefill"),
    ("west-p0", "west", "prefill"),
    ("west-d0", "west", "decode"),
    ("west-d1", "west", "decode"),
)
LINK_BPS = 100e6


@dataclass
class FakeRun:
    seed: int = 1
    requests: int = 40
    rate: float = 1.5
    failures: int = 0
    duration_s: float = 30.0
    threshold: int = 512
    busy: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def events(self) -> list[ev.Event]:
        """All events in the order of their times."""
        self.random = Random(self.seed)
        self.spans: list[tuple[str, float, float, int]] = []
        self.wire: list[tuple[float, float, int]] = []
        out = [*self._start(), *self._requests()]
        self.end_s = max(event.at_s for event in out)
        out += [*self._samples(), *self._end()]
        return sorted(out, key=lambda event: event.at_s)

    def _start(self) -> Iterator[ev.Event]:
        yield ev.RunStarted(
            at_s=0.0, scenario="bursty", topology="two-sites", mode="emulate", shaper="tun",
            model="qwen3-next-tiny", policy="threshold", threshold_tokens=self.threshold, seed=self.seed,
            duration_s=self.duration_s, requests=self.requests, verify_share=1.0,
            datacenters=(("east", "prfaas"), ("west", "local")), engines=ENGINES,
            links=(("wan", "east", "west"),), versions=(("torch", "2.13.0"),),
        )  # fmt: skip
        yield ev.PhaseChanged(at_s=0.01, name="network", done=0, total=1)
        yield ev.PhaseChanged(at_s=0.5, name="network", done=1, total=1)
        yield ev.PhaseChanged(at_s=0.02, name="model", done=0, total=1, detail="qwen3-next-tiny")
        yield ev.PhaseChanged(at_s=6.0, name="model", done=1, total=1)
        for number, (name, site, role) in enumerate(ENGINES):
            at = 6.5 + number / 10
            yield ev.EngineStarted(
                at_s=at, engine=name, datacenter=site, role=role, netns=f"lab-{name}", pid=4000 + number
            )
            yield ev.PhaseChanged(at_s=at, name="engines", done=number + 1, total=len(ENGINES))
        for source in ("east", "west"):
            yield ev.LinkMeasured(
                at_s=7.5, link="wan", source=source, configured_bps=LINK_BPS, measured_bps=95.1e6,
                configured_rtt_ms=50.0, measured_rtt_ms=50.3,
            )  # fmt: skip
            yield self._link_sample(7.9, source, base=1_000_000)
        yield ev.PhaseChanged(at_s=8.0, name="running")
        yield ev.LinkChanged(at_s=20.01, link="wan", source="east", due_s=20.0, change="rate 40Mbit")
        yield ev.LinkChanged(at_s=30.01, link="wan", source="east", due_s=30.0, change="rate 100Mbit")
        yield ev.Noted(at_s=20.0, level="warning", text="link wan narrows")

    def _requests(self) -> Iterator[ev.Event]:
        free: dict[str, float] = {}
        at = 8.0
        for number in range(self.requests):
            at += self.random.expovariate(self.rate)
            yield from self._request(f"r{number:05d}", at, free, fails=number < self.failures)

    def _request(self, name: str, at: float, free: dict[str, float], *, fails: bool) -> Iterator[ev.Event]:
        prompt = min(4096, max(64, int(self.random.lognormvariate(6.2, 0.9))))
        output = self.random.randint(1, 48)
        offloaded = prompt > self.threshold
        prefill = "east-p0" if offloaded else "west-p0"
        decode = self.random.choice(["west-d0", "west-d1"])
        yield ev.RequestSubmitted(at_s=at, request_id=name, prompt_tokens=prompt, output_tokens=output)
        yield ev.RequestRouted(
            at_s=at + 0.0002, request_id=name, prefill=prefill, decode=decode, offloaded=offloaded,
            uncached_tokens=prompt, threshold_tokens=self.threshold, reason=f"{prompt} uncached tokens",
        )  # fmt: skip
        start = max(at + 0.001, free.get(prefill, 0.0))
        end = start + prompt / (8000 if offloaded else 3000)
        free[prefill] = end
        self.spans.append((prefill, start, end, prompt))
        yield ev.PrefillStarted(at_s=start, request_id=name, engine=prefill)
        if fails:
            yield ev.RequestFailed(at_s=end, request_id=name, stage="prefill", reason="the engine died")
            return
        yield ev.PrefillFinished(at_s=end, request_id=name, engine=prefill, computed_tokens=prompt)
        size = 250_000 + 2048 * prompt
        sent = start + (end - start) / 2
        landed = end + (0.025 + 8 * size / LINK_BPS / 2 if offloaded else 0.002)
        if offloaded:
            self.wire.append((sent, landed, size))
        yield ev.TransferStarted(at_s=sent, request_id=name, source=prefill, destination=decode)
        yield ev.TransferFinished(
            at_s=landed, request_id=name, source=prefill, destination=decode, sent_bytes=size,
            received_bytes=size,
        )  # fmt: skip
        yield ev.CacheRestored(at_s=landed + 0.001, request_id=name, engine=decode)
        token = landed + 0.003
        first = token
        for _ in range(output):
            yield ev.TokensEmitted(at_s=token, request_id=name, engine=decode, count=1)
            last, token = token, token + self.random.uniform(0.02, 0.03)
        self.spans.append((decode, first, last, output))
        yield ev.RequestFinished(at_s=last + 0.0001, request_id=name)
        yield ev.RequestVerified(at_s=last + 100.0, request_id=name, outcome="match")

    def _samples(self) -> Iterator[ev.Event]:
        for tick in range(1, math.ceil((self.end_s - 100 - 8) * 2) + 1):
            at = 8 + tick / 2
            yield ev.ShaperSampled(at_s=at, cpu_s=at / 10, waited_s=at / 1000)
            yield ev.MachineSampled(at_s=at, cpu_fraction=self.random.uniform(0.4, 0.8), timer_lag_s=0.002)
            for source in ("east", "west"):
                yield self._link_sample(at, source, base=1_000_000)
            for name, _, _ in ENGINES:
                yield self._engine_sample(at, name)

    def _link_sample(self, at: float, source: str, *, base: int) -> ev.LinkSampled:
        share = [(min(1.0, max(0.0, (at - a) / (b - a))), size) for a, b, size in self.wire]
        carried = sum(int(1.04 * part * size) for part, size in share)
        total = base + (carried if source == "east" else carried // 40)
        narrow = source == "east" and 20 <= at < 30
        return ev.LinkSampled(
            at_s=at, link="wan", source=source, configured_bps=40e6 if narrow else LINK_BPS,
            bytes_total=total, packets_total=total // 1400, dropped_total=3 if at > 20 else 0,
            backlog_bytes=self.random.randrange(200_000) if source == "east" else 0,
            retransmitted_total=11 if at > 20 else 7,
        )  # fmt: skip

    def _engine_sample(self, at: float, name: str) -> ev.EngineSampled:
        mine = [span for span in self.spans if span[0] == name]
        running = sum(start <= at < end for _, start, end, _ in mine)
        busy = sum(max(0.0, min(at, end) - start) for _, start, end, _ in mine)
        done = sum(count * min(1.0, max(0.0, (at - a) / max(b - a, 1e-6))) for _, a, b, count in mine)
        return ev.EngineSampled(
            at_s=at, engine=name, queued=self.random.randrange(3), running=running,
            busy_s=min(busy, at - 8), tokens_total=int(done), cpu_s=at / 2, waited_s=at / 20,
        )  # fmt: skip

    def _end(self) -> Iterator[ev.Event]:
        over = self.end_s - 100 + 0.01
        yield ev.PhaseChanged(at_s=max(8.0, over - 2), name="draining")
        yield ev.PhaseChanged(at_s=over + 0.5, name="verifying", done=0, total=self.requests)
        yield ev.PhaseChanged(at_s=over + 90, name="verifying", done=self.requests, total=self.requests)
        yield ev.PhaseChanged(at_s=self.end_s + 1, name="teardown")
        yield ev.PhaseChanged(at_s=self.end_s + 2, name="done")
