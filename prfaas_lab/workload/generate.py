"""A workload's requests, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from prfaas_lab.spec.scenario import TraceFile, Workload
from prfaas_lab.workload.arrivals import arrivals
from prfaas_lab.workload.lengths import lengths
from prfaas_lab.workload.prompts import RESERVED_IDS, random_prompt
from prfaas_lab.workload.request import Request
from prfaas_lab.workload.sessions import SessionSource, size
from prfaas_lab.workload.traces import TRACES, TraceScale, trace_requests

if TYPE_CHECKING:
    import numpy as np

# Each aspect draws from a stream of its own, so that changing one leaves the others as they were.
# The keys are part of what a seed means: never renumber them.
_ARRIVALS, _PROMPT_LENGTHS, _OUTPUT_LENGTHS, _TOKENS, _SESSIONS, _SYSTEMS = 0, 1, 2, 3, 4, 5
_ANY_VOCABULARY = 1 << 16
_DRAWN = 256


def generate(
    workload: Workload, *, seed: int, vocab_size: int | None, duration_s: float, time_scale: float = 1.0,
    contents: bool = True,
) -> Iterator[Request]:  # fmt: skip
    """The requests that arrive within `duration_s`, at most `workload.requests` of them, one by one.

    `duration_s` is the scenario's, before `time_scale`; the arrival times yielded are stretched by
    it. A closed loop has no arrival times and no end but `workload.requests`: its driver stops.
    Without a vocabulary, prompts have a length and no ids. The same arguments give the same requests.

    With sessions, each first request is yielded, and carries those that follow it; `workload.requests`
    counts them all. Their prompts have ids in any case, since it is by these that they share prefixes;
    so have those of a trace, unless nobody wants its `contents`.
    """
    if isinstance(workload.arrivals, TraceFile) and not contents:
        yield from _lengths_traced(workload.arrivals, workload.requests, duration_s, time_scale)
        return
    if isinstance(workload.arrivals, TraceFile):
        yield from _traced(workload, seed, vocab_size or _ANY_VOCABULARY, duration_s, time_scale)
        return
    if workload.sessions is not None:
        yield from _sessions(workload, seed, vocab_size or _ANY_VOCABULARY, duration_s, time_scale)
        return
    laws = before = tuple(lengths(law) for law in workload.lengths)
    shift = workload.shift
    after = (lengths(shift.prompt), lengths(shift.output)) if shift else before
    prompt_ranks = _uniform(_stream(seed, _PROMPT_LENGTHS))
    output_ranks = _uniform(_stream(seed, _OUTPUT_LENGTHS))
    times = arrivals(workload.arrivals, _stream(seed, _ARRIVALS))
    for number, arrival_s in enumerate(islice(times, workload.requests)):
        if arrival_s is not None and arrival_s > duration_s:
            return
        if shift and arrival_s is not None and arrival_s >= shift.at:
            laws = after
        tokens = laws[0].quantile(next(prompt_ranks))
        yield Request(
            id=f"r{number:05d}",
            arrival_s=None if arrival_s is None else arrival_s * time_scale,
            prompt=random_prompt(tokens, vocab_size, _stream(seed, _TOKENS, number)) if vocab_size else (),
            length=None if vocab_size else tokens,
            output_tokens=laws[1].quantile(next(output_ranks)),
        )


def _traced(
    workload: Workload, seed: int, vocab_size: int, duration_s: float, time_scale: float
) -> Iterator[Request]:
    trace = workload.arrivals
    assert isinstance(trace, TraceFile)
    scale = TraceScale(
        block_tokens=trace.block, output_factor=trace.output_factor, rate_factor=trace.rate_factor
    )
    rows = TRACES[trace.format](Path(trace.file))
    found = trace_requests(rows, seed=seed, vocabulary=vocab_size, first_token=RESERVED_IDS, scale=scale)
    for request in islice(found, workload.requests):
        assert request.arrival_s is not None
        if request.arrival_s > duration_s:
            return
        yield replace(request, arrival_s=request.arrival_s * time_scale)


def _lengths_traced(
    trace: TraceFile, requests: int | None, duration_s: float, time_scale: float
) -> Iterator[Request]:
    scale = TraceScale(
        block_tokens=trace.block, output_factor=trace.output_factor, rate_factor=trace.rate_factor
    )
    for row in islice(TRACES[trace.format](Path(trace.file)), requests):
        arrival_s = row.arrival_s / trace.rate_factor
        if arrival_s > duration_s:
            return
        yield Request(
            id=f"trace-{row.line}",
            arrival_s=arrival_s * time_scale,
            prompt=(),
            length=scale.prompt_tokens(row.prompt_tokens),
            output_tokens=scale.output_tokens(row.output_tokens),
        )


def _sessions(
    workload: Workload, seed: int, vocab_size: int, duration_s: float, time_scale: float
) -> Iterator[Request]:
    source = SessionSource(
        workload,
        vocab_size=vocab_size,
        time_scale=time_scale,
        session_streams=partial(_stream, seed, _SESSIONS),
        system_streams=partial(_stream, seed, _SYSTEMS),
    )
    left = workload.requests
    for number, arrival_s in enumerate(arrivals(workload.arrivals, _stream(seed, _ARRIVALS))):
        if left == 0 or (arrival_s is not None and arrival_s > duration_s):
            return
        first = source.session(number, None if arrival_s is None else arrival_s * time_scale, left)
        left = None if left is None else left - size(first)
        yield first


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    """The generator's numbers one by one, drawn many at a time."""
    return chain.from_iterable(rng.random(_DRAWN).tolist() for _ in count())


def _stream(seed: int, *key: int) -> np.random.Generator:
    import numpy as np  # a trace needs no chance, and a short run would wait for it

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
