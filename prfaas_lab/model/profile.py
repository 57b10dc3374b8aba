"""Hardware profiles: how long an engine of a kind takes, and how many bytes it makes.

A profile is the triple the paper's equations need: length -> prefill seconds, length -> KVCache
bytes, batch -> decode step seconds. Shipped ones live in `profiles/*.yaml`, each curve with its
source and whether it was published or derived.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from prfaas_lab.errors import LabError, SpecError
from prfaas_lab.spec.problems import validate
from prfaas_lab.spec.quantities import Duration, Size, Tokens
from prfaas_lab.spec.topology import Spec
from prfaas_lab.spec.yaml_text import parse_document

Floats = npt.NDArray[np.float64]
_HARDWARE = re.compile(r"^hardware: (\S+)$", re.MULTILINE)


class Curve(Spec):
    """A piecewise-linear function through its knots.

    Extrapolation: beyond either end the outermost segment's line goes on; a single knot is a
    constant. A curve never falls and is never negative at 0, so every answer is >= 0.
    """

    source: str = Field(min_length=1, description="where the knots come from")
    derived: bool = Field(default=False, description="computed or fitted, rather than published or measured")
    knots: tuple[tuple[float, float], ...] = Field(min_length=1)

    @field_validator("knots", check_fields=False)
    @classmethod
    def _rises(cls, knots: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(a[0] >= b[0] for a, b in pairwise(knots)):
            raise ValueError("knots must be in rising order (sort them, and drop repeated ones)")
        if knots[0][0] < 0 or any(a[1] > b[1] for a, b in pairwise(knots)):
            raise ValueError("knots start below 0 or fall (a longer input never costs less)")
        # A curve proportional to its input meets 0 at 0, but for rounding.
        if _line(knots[0], knots[1 if len(knots) > 1 else 0])[0] < -1e-9 * knots[0][1]:
            raise ValueError("the first segment leads below zero at 0 (add a knot nearer to 0)")
        return knots

    def at(self, x: float) -> float:
        """The curve's value at one point."""
        inner, lines = self._segments
        intercept, slope = lines[bisect_left(inner, x)]
        return intercept + slope * x

    def many(self, x: npt.ArrayLike) -> Floats:
        """The curve's values at many points."""
        points = np.asarray(x, dtype=np.float64)
        lines = np.asarray(self.segments()[1])[np.searchsorted(self.inner_knots(), points, side="left")]
        return np.asarray(lines[..., 0] + lines[..., 1] * points)

    def inverse(self, y: float) -> float:
        """The largest x whose value is at most y: -inf when there is none, inf when every one is."""
        inner, lines = self.segments()
        for left, (intercept, slope) in zip((0.0, *inner)[::-1], lines[::-1], strict=True):
            if intercept + slope * left <= y:
                # Continuity: were y beyond this segment's right end, the next one would have answered.
                return (y - intercept) / slope if slope else float("inf")
        return float("-inf")

    def inner_knots(self) -> tuple[float, ...]:
        """Where the slope changes: the knots but the first and the last."""
        return tuple(x for x, _ in self.knots[1:-1])

    def segments(self) -> tuple[tuple[float, ...], tuple[tuple[float, float], ...]]:
        """The inner knots, and the (intercept, slope) of the line before, between and after them."""
        return self._segments

    @cached_property
    def _segments(self) -> tuple[tuple[float, ...], tuple[tuple[float, float], ...]]:
        if len(self.knots) == 1:
            return (), ((self.knots[0][1], 0.0),)
        return self.inner_knots(), tuple(_line(a, b) for a, b in pairwise(self.knots))


def rising(knots: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Measured knots as a curve takes them. A longer input never costs less: what noise turned round is
    made level, and what no clock knows, beyond five digits, is cut off. The first knots may not lead below
    zero at 0 either, so the first is at least its share of the second."""
    level: list[tuple[int, float]] = []
    for x, y in knots:
        y = float(f"{y:.5g}")
        level.append((x, max(y, level[-1][1]) if level else y))
    for (x0, y0), (x1, y1) in list(pairwise(level))[:1]:
        level[0] = x0, max(y0, y1 * x0 / x1)
    return tuple(level)


class PrefillCurve(Curve):
    """Uncached prompt tokens -> seconds of one instance."""

    knots: tuple[tuple[Tokens, Duration], ...] = Field(min_length=1)


class CacheCurve(Curve):
    """Uncached prompt tokens -> bytes of KVCache, S_kv: fixed state and growing part together."""

    knots: tuple[tuple[Tokens, Size], ...] = Field(min_length=1)


class StepCurve(Curve):
    """Sequences decoded together -> seconds of one step."""

    knots: tuple[tuple[Annotated[int, Field(gt=0)], Duration], ...] = Field(min_length=1)


class Decode(Spec):
    """How an instance decodes."""

    bs_max: int = Field(gt=0, description="sequences one instance decodes together, within the SLO")
    step: StepCurve


class Machine(Spec):
    """The machine on which a real model was measured: what its engines share there, and what a request takes
    beside its prefill, its way and its steps. For simulations; paced engines have a core of their own."""

    source: str = Field(min_length=1, description="where the figures come from")
    cores: Annotated[float, Field(gt=0)] = Field(
        description="cores for all engines; more that compute at once are slowed alike"
    )
    order: Duration = Field(default=0.0, description="from a request to its turn at an idle prefill engine")
    connect: Duration = Field(
        default=0.0,
        description="what two engines take, beside round trips, to be connected for the first time",
    )
    restore: Duration = Field(
        default=0.0, description="from its KVCache to its first token, at an idle decode engine"
    )


class Profile(Spec):
    """One engine instance of a kind of hardware, running one model."""

    hardware: str = Field(min_length=1, description="the name a topology's `hardware:` uses")
    model: str
    gpus: int = Field(gt=0, description="GPUs of one instance, P in equation 2")
    prefill: PrefillCurve
    kvcache: CacheCurve
    decode: Decode | None = Field(default=None, description="unset where decoding was never profiled")
    machine: Machine | None = Field(default=None, description="unset for hardware that engines do not share")

    @property
    def bs_max(self) -> int:
        """Sequences decoded together. Raises LabError when the hardware has no decode profile."""
        return self.decoding().bs_max

    def prefill_s(self, tokens: float, cached_tokens: float = 0.0) -> float:
        """T_prefill(l) of a prompt, seconds; T(0) + T(l) - T(cached) when its beginning is cached.

        What a hit saves is what its tokens would have cost. The rest still attends to them, and T(l)
        counts that; nor does a hit save T(0), what a prefill costs however short it is.
        """
        if not cached_tokens:
            return self.prefill.at(tokens)
        return self.prefill.at(0.0) + self.prefill.at(tokens) - self.prefill.at(cached_tokens)

    def kv_bytes(self, tokens: float) -> float:
        """S_kv(l), bytes."""
        return self.kvcache.at(tokens)

    def step_s(self, batch: float) -> float:
        """T_decode at a batch, seconds. Raises LabError when there is no decode profile."""
        return self.decoding().step.at(batch)

    def decoding(self) -> Decode:
        """The decode profile. Raises LabError when there is none."""
        if self.decode is None:
            raise LabError(
                f"hardware {self.hardware!r} has no decode profile",
                remedy="let it only prefill, or name other hardware for the local datacenter",
            )
        return self.decode


def read_profile(text: str, where: str) -> Profile:
    """A profile from YAML. Raises SpecError with every mistake at once."""
    profile, problems = validate(Profile, parse_document(text, where))
    if problems or profile is None:
        raise SpecError([str(problem) for problem in problems])
    return profile


@cache
def shipped_hardware() -> tuple[str, ...]:
    """The name of every shipped profile's hardware, in alphabetical order."""
    return tuple(sorted(_shipped_texts()))


@cache
def _shipped(hardware: str) -> Profile:
    name, text = _shipped_texts()[hardware]
    return read_profile(text, name)


@cache
def _shipped_texts() -> dict[str, tuple[str, str]]:
    """File name and text by hardware. Only the one that is asked for is read as YAML: that takes a while."""
    files = resources.files("prfaas_lab.model").joinpath("profiles").iterdir()
    texts = {file.name: file.read_text("utf-8") for file in files if file.name.endswith(".yaml")}
    found = ((_HARDWARE.search(text), name, text) for name, text in texts.items())
    return {match[1]: (name, text) for match, name, text in found if match}


def find_profile(hardware: str, *, folder: Path | None = None) -> Profile:
    """The profile a topology's `hardware:` names: a shipped one, or a `.yaml` file (relative to `folder`).

    Raises LabError (exit 2) when there is no such profile, SpecError when the file is wrong.
    """
    if hardware.endswith((".yaml", ".yml")):
        path = (folder or Path()) / hardware
        if not path.is_file():
            raise SpecError([f"{path}: no such profile (write a shipped name, or a path that exists)"])
        return read_profile(path.read_text("utf-8"), str(path))
    if hardware not in shipped_hardware():
        raise SpecError([f"no profile for hardware {hardware!r} ({_suggestion(hardware)})"])
    return _shipped(hardware)


def _suggestion(hardware: str) -> str:
    known = {name.lower(): name for name in shipped_hardware()}
    near = get_close_matches(hardware.lower(), known, n=1)
    return f"did you mean {known[near[0]]!r}?" if near else f"have: {', '.join(known.values())}"


def _line(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Intercept at 0 and slope of the line through two knots (flat when they are one)."""
    slope = (b[1] - a[1]) / (b[0] - a[0]) if b[0] != a[0] else 0.0
    return a[1] - slope * a[0], slope
