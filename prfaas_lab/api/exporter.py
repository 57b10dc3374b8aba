"""`/metrics`: the ledger for Prometheus, under vLLM's names where they fit and `prfaas_*` elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from prfaas_lab.lab.deployment import Deployment
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.handover import handover
from prfaas_lab.metrics.requests import RequestRecord

_TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_LONG_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Exporter:
    """Follows a deployment's ledger from its making on. `close` ends that."""

    def __init__(self, deployment: Deployment, model: str) -> None:
        self._deployment, self._model = deployment, model
        self._registry = CollectorRegistry()
        self._sites = {name: engine.datacenter for name, engine in deployment.engines.items()}
        self._make_request_metrics()
        self._make_lab_metrics()
        self._last_token_s: dict[str, float] = {}
        self.close: Callable[[], None] = deployment.ledger.subscribe(self._observe)

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that a client accepts, and its content type."""
        self._refresh()
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    # -- what there is -----------------------------------------------------------------------------

    def _make_request_metrics(self) -> None:
        """Those that vLLM has, as it has them: all carry the model's name."""
        self._running = self._gauge("vllm:num_requests_running", "Requests that an engine works on")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait in an engine's queue")
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens prefilled")
        self._generated = self._counter("vllm:generation_tokens", "Tokens generated")
        self._queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in prefix caches")
        self._hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in prefix caches")
        self._success = self._counter("vllm:request_success", "Requests completed", "finished_reason")
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "From request to first token", _TTFT_S
        )
        self._gap = self._histogram("vllm:time_per_output_token_seconds", "Between two tokens", _TOKEN_S)
        self._itl = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens", _TOKEN_S)
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token of a request", _TOKEN_S
        )
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "From request to last token", _LONG_S)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "From request to prefill", _LONG_S)
        self._prefill = self._histogram("vllm:request_prefill_time_seconds", "Prefill of a request", _LONG_S)
        self._decode = self._histogram("vllm:request_decode_time_seconds", "First to last token", _LONG_S)
        self._prompt_sizes = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._output_sizes = self._histogram("vllm:request_generation_tokens", "Tokens of an output", _TOKENS)

    def _make_lab_metrics(self) -> None:
        self._failures = self._counter("prfaas_request_failures", "Requests that failed", "stage")
        self._routed = self._counter(
            "prfaas_requests_routed", "Requests by where they prefill", "datacenter", "offloaded"
        )
        self._offload = self._gauge("prfaas_offload_ratio", "Share of the requests that were offloaded")
        self._threshold = self._gauge("prfaas_threshold_tokens", "Uncached tokens above which to offload")
        self._plans = self._counter("prfaas_plan_changes", "Plans swapped in", "policy")
        self._transferred = self._counter(
            "prfaas_transfer_bytes", "KVCache bytes received", "source", "destination"
        )
        self._retried = self._counter("prfaas_transfer_retried_chunks", "Chunks sent again")
        self._transfer_s = self._histogram(
            "prfaas_transfer_seconds", "First KVCache byte sent to last received", _LONG_S, "offloaded"
        )
        self._legs = self._histogram("prfaas_handover_seconds", "Legs of the TTFT", _TTFT_S, "leg")
        self._link_bytes = self._counter("prfaas_link_bytes", "Bytes a link carried", "link", "source")
        self._link_drops = self._counter("prfaas_link_dropped_packets", "Packets dropped", "link", "source")
        self._link_rate = self._gauge("prfaas_link_rate_bps", "Rate set now", "link", "source")
        self._link_backlog = self._gauge("prfaas_link_backlog_bytes", "Bytes queued", "link", "source")
        self._link_changes = self._counter(
            "prfaas_link_changes", "Changes of a link's shape", "link", "source"
        )
        self._egress = self._counter("prfaas_egress_bytes", "Bytes that left over all links", "datacenter")
        engine = ("engine", "datacenter", "role")
        self._engine_up = self._gauge("prfaas_engine_up", "1 while the engine lives", *engine)
        self._engine_running = self._gauge("prfaas_engine_running", "Sequences computed now", *engine)
        self._engine_queued = self._gauge("prfaas_engine_queued", "Sequences waiting", *engine)
        self._engine_busy = self._counter("prfaas_engine_busy_seconds", "Time spent computing", *engine)
        self._engine_tokens = self._counter("prfaas_engine_tokens", "Tokens prefilled or decoded", *engine)
        self._cpu = self._gauge("prfaas_machine_cpu_ratio", "CPU use of the machine")
        self._lag = self._gauge("prfaas_machine_timer_lag_seconds", "Lag of the controller's timers")

    def _gauge(self, name: str, text: str, *labels: str) -> _Labelled:
        return _Labelled(Gauge(name, text, ("model_name", *labels), registry=self._registry), self._model)

    def _counter(self, name: str, text: str, *labels: str) -> _Labelled:
        return _Labelled(Counter(name, text, ("model_name", *labels), registry=self._registry), self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Labelled:
        metric = Histogram(name, text, ("model_name", *labels), buckets=buckets, registry=self._registry)
        return _Labelled(metric, self._model)

    # -- following the ledger ----------------------------------------------------------------------

    def _observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.RequestEvent):
            self._request(event, self._deployment.ledger.tally.requests[event.request_id])
        else:
            self._resource(event)

    def _request(self, event: ev.RequestEvent, record: RequestRecord) -> None:
        match event:
            case ev.RequestRouted():
                site = self._sites.get(event.prefill, "")
                self._routed(site, str(event.offloaded).lower()).inc()
            case ev.PrefillFinished():
                self._prompt().inc(record.prompt_tokens)
                self._queries().inc(record.prompt_tokens)
                self._hits().inc(event.cached_tokens)
            case ev.TokensEmitted():
                self._token(event, record)
            case ev.TransferFinished():
                ends = self._sites.get(event.source, ""), self._sites.get(event.destination, "")
                self._transferred(*ends).inc(event.received_bytes)
                self._retried().inc(event.retried_chunks)
            case ev.RequestFinished():
                self._finished(event, record)
            case ev.RequestFailed():
                self._failures(event.stage).inc()
                self._last_token_s.pop(event.request_id, None)

    def _token(self, event: ev.TokensEmitted, record: RequestRecord) -> None:
        self._generated().inc(event.count)
        before_s = self._last_token_s.get(event.request_id)
        if before_s is None:
            _observe(self._ttft(), record.ttft_s)
        else:  # paced engines tell of many tokens at once: a gap before each
            gap_s, gap, itl = (event.at_s - before_s) / event.count, self._gap(), self._itl()
            for _ in range(event.count):
                gap.observe(gap_s)
                itl.observe(gap_s)
        self._last_token_s[event.request_id] = event.at_s

    def _finished(self, event: ev.RequestFinished, record: RequestRecord) -> None:
        self._last_token_s.pop(event.request_id, None)
        self._success(event.why).inc()
        self._prompt_sizes().observe(record.prompt_tokens)
        self._output_sizes().observe(record.emitted_tokens)
        _observe(self._tpot(), record.tpot_s)
        _observe(self._e2e(), record.e2el_s)
        _observe(self._queue(), _between(record.submitted_s, record.prefill_started_s))
        _observe(self._prefill(), _between(record.prefill_started_s, record.prefill_finished_s))
        _observe(self._decode(), _between(record.first_token_s, record.last_token_s))
        transfer_s = _between(record.transfer_started_s, record.transfer_finished_s)
        _observe(self._transfer_s(str(record.offloaded).lower()), transfer_s)
        if legs := handover(record):
            for leg, ms in legs._asdict().items():
                self._legs(leg.removesuffix("_ms")).observe(ms / 1e3)

    def _resource(self, event: ev.Event) -> None:
        match event:
            case ev.LinkChanged():
                self._link_changes(event.link, event.source).inc()
            case ev.PlanChanged():
                self._plans(event.policy).inc()
            case ev.MachineSampled():
                self._cpu().set(event.cpu_fraction)
                self._lag().set(event.timer_lag_s)

    # -- what is only read when asked --------------------------------------------------------------

    def _refresh(self) -> None:
        tally, service = self._deployment.ledger.tally, self._deployment.service
        self._threshold().set(_number(service.plan.threshold_tokens))
        self._offload().set(tally.offloaded / tally.routed if tally.routed else 0.0)
        waiting = 0
        for name, engine in self._deployment.engines.items():
            labels, sample = (name, engine.datacenter, engine.role), tally.engine(name).last
            self._engine_up(*labels).set(engine.alive)
            if sample is not None:
                waiting += sample.queued
                self._engine_running(*labels).set(sample.running)
                self._engine_queued(*labels).set(sample.queued)
                self._engine_busy.raise_to(sample.busy_s, *labels)
                self._engine_tokens.raise_to(sample.tokens_total, *labels)
        self._waiting().set(min(waiting, tally.in_flight))
        self._running().set(max(0, tally.in_flight - waiting))
        self._refresh_links()

    def _refresh_links(self) -> None:
        egress: dict[str, int] = {}
        for link, source in self._deployment.fabric.directions:
            sample = self._deployment.ledger.tally.direction(link, source).last
            self._link_rate(link, source).set(_number(self._deployment.fabric.shape(link, source).rate_bps))
            if sample is not None:
                egress[source] = egress.get(source, 0) + sample.bytes_total
                self._link_bytes.raise_to(sample.bytes_total, link, source)
                self._link_drops.raise_to(sample.dropped_total, link, source)
                self._link_backlog(link, source).set(sample.backlog_bytes)
        for datacenter, total in egress.items():
            self._egress.raise_to(total, datacenter)


class _Labelled:
    """A metric of one model: called with its other labels it gives the child."""

    def __init__(self, metric: Any, model: str) -> None:
        self._metric, self._model = metric, model
        self._totals: dict[tuple[str, ...], float] = {}

    def __call__(self, *labels: str) -> Any:
        return self._metric.labels(self._model, *labels)

    def raise_to(self, total: float, *labels: str) -> None:
        """Of a counter: take over a total that is counted elsewhere."""
        before = self._totals.get(labels, 0.0)
        if total > before:
            self(*labels).inc(total - before)
            self._totals[labels] = total


def _observe(histogram: Any, value: float | None) -> None:
    if value is not None:
        histogram.observe(max(0.0, value))


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _number(value: float | None) -> float:
    """Prometheus' way to say that there is none."""
    return float("nan") if value is None else value
