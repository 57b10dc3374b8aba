"""The events of a run: frozen values that every room writes into one ledger.

`at_s` is seconds since the run's start. Everything shown, summed up or replayed is derived from
these and nothing else. An event's `kind` in `events.jsonl` is its class name. Fields are numbers,
text, None, or (nested) tuples of those, so that every event reads back from JSON to the same value.
"""

from __future__ import annotations

from msgspec import Struct


class Event(
    Struct, frozen=True, kw_only=True, tag=True, tag_field="kind", forbid_unknown_fields=True, gc=False
):
    """Something that happened at a time of the run."""

    at_s: float


class RunStarted(Event, frozen=True, kw_only=True):
    """What runs: the first event of a run (`metrics.run.run_started` makes it from a scenario)."""

    scenario: str
    topology: str
    mode: str
    shaper: str
    model: str
    policy: str
    threshold_tokens: int | None
    seed: int
    duration_s: float
    """How long requests arrive, in seconds of the run (after `time_scale`)."""
    warm_up_s: float = 0.0
    """What of it is left out of the steady-state figures."""
    scale: float = 1.0
    """Bandwidth and paced KVCache of the run over those of the real deployment."""
    time_scale: float = 1.0
    """Seconds of the run over those of the real deployment."""
    requests: int | None = None
    verify_share: float = 0.0
    compression: str = "none"
    """How KVCache crosses: none, zstd or int8 (which is lossy)."""
    verify_what: str = "tokens"
    """`tokens`: with one-process generation. `payload`: a paced run's bytes, segment by segment, at
    the receiver, and their number with the layout's prediction."""
    cpu_tolerance: float = 0.95
    timer_lag_tolerance_s: float = 0.02
    shaper_wait_tolerance: float = 0.02
    engine_wait_tolerance: float = 0.25
    datacenters: tuple[tuple[str, str], ...] = ()
    """(name, role) of each datacenter."""
    engines: tuple[tuple[str, str, str], ...] = ()
    """(name, datacenter, role) of each engine that is to start."""
    links: tuple[tuple[str, str, str], ...] = ()
    """(name, first end, second end) of each link."""
    versions: tuple[tuple[str, str], ...] = ()
    """(what, version) of everything a rerun needs to be the same."""


class PhaseChanged(Event, frozen=True, kw_only=True):
    """The run's phase began or came on. In the order of a run: the bring-up steps `network`,
    `model`, `engines`, `links` (they may overlap; one is over when done == total), then `running`,
    `draining`, `verifying`, `teardown`, `done`."""

    name: str
    done: int | None = None
    total: int | None = None
    detail: str = ""


class RequestEvent(Event, frozen=True, kw_only=True):
    """Something that happened to one request."""

    request_id: str


class RequestSubmitted(RequestEvent, frozen=True, kw_only=True):
    prompt_tokens: int
    output_tokens: int


class RequestRouted(RequestEvent, frozen=True, kw_only=True):
    """The policy's decision, with its reason in words."""

    prefill: str
    decode: str
    offloaded: bool
    uncached_tokens: int
    threshold_tokens: int | None
    reason: str
    prefix_tokens: tuple[tuple[str, int], ...] = ()
    """(datacenter, tokens) of each that was thought to hold the beginning of the prompt."""


class RequestMoved(RequestEvent, frozen=True, kw_only=True):
    """It was given to other engines, since one of those it had been placed on is to change its role: before
    its prefill began, or (to decode it elsewhere) before any of its KVCache was sent."""

    prefill: str
    decode: str


class PrefillStarted(RequestEvent, frozen=True, kw_only=True):
    engine: str


class PrefillFinished(RequestEvent, frozen=True, kw_only=True):
    engine: str
    computed_tokens: int
    cached_tokens: int = 0
    decoded_tokens: int = 0
    """Of the cached: in blocks that a decode engine completed, in answers before this turn."""


class TransferStarted(RequestEvent, frozen=True, kw_only=True):
    """The first KVCache byte was handed to a socket, usually while prefill still computes."""

    source: str
    destination: str


class TransferFinished(RequestEvent, frozen=True, kw_only=True):
    """The last KVCache byte lies, checked, in the decode engine's memory."""

    source: str
    destination: str
    sent_bytes: int
    received_bytes: int
    retried_chunks: int = 0
    held_bytes: int = 0
    """KVCache of the prompt that did not cross, since the decode engine held it already."""
    wire_bytes: int | None = None
    """What the bytes that were sent took on the wire, compressed; None: they crossed as they are."""


class CacheRestored(RequestEvent, frozen=True, kw_only=True):
    """The decode engine built the model's cache from the received bytes."""

    engine: str


class TokensEmitted(RequestEvent, frozen=True, kw_only=True):
    """Output tokens reached the client (the first such event of a request is its first token). When
    paced engines report several at once, the last of them came at `at_s`; the gap since the event
    before, divided by `count`, counts as one inter-token latency."""

    engine: str
    count: int


class RequestFinished(RequestEvent, frozen=True, kw_only=True):
    """All output tokens were delivered. `why` there are no more: `length` (as many as asked for), or
    `stop` (a token or text that ends an output)."""

    why: str = "length"


class RequestFailed(RequestEvent, frozen=True, kw_only=True):
    stage: str
    reason: str


class RequestVerified(RequestEvent, frozen=True, kw_only=True):
    """The output was compared with one-process generation. `outcome`: match, tie or mismatch; or, where
    KVCache crossed in a lossy form and that is no fault, `differs`."""

    outcome: str
    detail: str = ""
    compared_tokens: int = 0
    equal_tokens: int = 0
    """Of the output, and how many of them are the same at the same place; 0 where no tokens are compared."""


class LinkMeasured(Event, frozen=True, kw_only=True):
    """One direction of a link, measured at bring-up against its spec."""

    link: str
    source: str
    configured_bps: float | None
    measured_bps: float
    configured_rtt_ms: float
    measured_rtt_ms: float
    reasons: tuple[str, ...] = ()
    """In words, with figures, where the measurement lies outside the tolerance."""


class LinkSampled(Event, frozen=True, kw_only=True):
    """Counters of one direction of a link since the run's start, and its configured rate now: no more
    than what its source's egress cap leaves it."""

    link: str
    source: str
    configured_bps: float | None
    bytes_total: int
    packets_total: int
    dropped_total: int
    backlog_bytes: int
    rtt_ms: float | None = None
    """Round trip seen lately, where somebody watches it."""
    retransmitted_total: int | None = None
    """TCP segments that the source datacenter's nodes have sent again. The kernel counts them per
    namespace: over all links that leave the datacenter (each link's samples say the same), and within
    it. None where nothing counts them (relay, simulation)."""


class PathSampled(Event, frozen=True, kw_only=True):
    """What an engine's kernel says of its connections to another engine, over the last 100 ms or so."""

    source: str
    destination: str
    """Engines."""
    link: str
    link_source: str
    """The direction of a link that is narrowest on the way."""
    configured_bps: float | None
    """Its rate now."""
    egress_bps: float | None
    """What it is estimated to give to all engines together; None until they asked for all it has."""
    throughput_bps: float
    """Acknowledged, headers included."""
    available_bps: float | None
    """What the way gives to this engine, by its own reckoning."""
    backlogged: bool
    """More was waiting throughout than a round trip carries."""
    backlog_bytes: int
    utilisation: float
    congested: bool
    loss: float
    queueing_delay_s: float
    rtt_s: float
    min_rtt_s: float
    connections: int
    retransmits: int
    delivery_rate_bps: float
    cwnd_bytes: int
    receiver_limited: float
    buffer_limited: float


class LinkChanged(Event, frozen=True, kw_only=True):
    """A live change took effect at `at_s`; `due_s` is when it was meant to."""

    link: str
    source: str
    due_s: float
    change: str


class EngineSampled(Event, frozen=True, kw_only=True):
    """An engine's state now; `busy_s` counts from the run's start."""

    engine: str
    queued: int
    running: int
    busy_s: float
    tokens_total: int
    cpu_s: float | None = None
    waited_s: float | None = None
    """On a CPU, and runnable but waiting for one, summed over its threads; None where not counted."""


class ShaperSampled(Event, frozen=True, kw_only=True):
    """CPU time of the process that carries the packets (none with netem), and its waiting for a CPU:
    packets are late by that. Both since it began."""

    cpu_s: float
    waited_s: float


CACHE_COUNTS = (
    "blocks", "snapshots", "memory_bytes", "disk_bytes", "lookups", "hits", "prompt_tokens", "hit_tokens",
    "disk_hit_tokens", "snapshots_made", "snapshots_reused", "evicted_blocks", "evicted_snapshots", "spilled",
    "reloaded", "damaged", "transfers_made", "transfers_refused", "transfer_peak_bytes",
)  # fmt: skip
"""The fields of CacheSampled that a pool counts."""


class CacheSampled(Event, frozen=True, kw_only=True):
    """A pool of an engine's prefix cache now (the first four counts), and its counts since the start; runs of
    before some were counted have none of those."""

    engine: str
    role: str = ""
    """Whose pool it is, of an engine that has one for each role; runs of before did not tell."""
    blocks: int
    snapshots: int
    memory_bytes: int
    disk_bytes: int
    lookups: int
    hits: int
    prompt_tokens: int
    hit_tokens: int
    disk_hit_tokens: int = 0
    snapshots_made: int
    snapshots_reused: int
    evicted_blocks: int
    evicted_snapshots: int
    spilled: int
    reloaded: int = 0
    damaged: int
    transfers_made: int = 0
    transfers_refused: int = 0
    transfer_peak_bytes: int = 0


class CacheCopied(Event, frozen=True, kw_only=True):
    """A prefix was copied from one engine's cache to another's, which can resume from `tokens` now."""

    source: str
    destination: str
    tokens: int
    bytes: int
    took_s: float
    reason: str
    answer_of: str | None = None
    """The request whose answer it ends with, where a decode engine hands over what it computed."""


class EngineStarted(Event, frozen=True, kw_only=True):
    engine: str
    datacenter: str
    role: str
    netns: str
    pid: int


class EngineDied(Event, frozen=True, kw_only=True):
    engine: str
    exit_status: str
    last_words: str


class PlanChanged(Event, frozen=True, kw_only=True):
    """A new plan was swapped in, and why."""

    policy: str
    threshold_tokens: int | None
    reason: str


class RoleChanged(Event, frozen=True, kw_only=True):
    """An engine rejoined in another role, after it had drained and switched; and why."""

    engine: str
    before: str
    after: str
    drain_s: float
    switch_s: float
    reason: str


class MachineSampled(Event, frozen=True, kw_only=True):
    """How the machine bears it: CPU share of all cores, and the controller's timer lag."""

    cpu_fraction: float
    timer_lag_s: float


class Noted(Event, frozen=True, kw_only=True):
    """A line for the log of events on the screen. `level`: info, warning or error."""

    level: str
    text: str
