"""The most that can flow: groups of requests over sites, caps and decode slots, as a linear programme.

A group of requests (a class, or a thin slice of lengths) may be split over the ways open to it: prefilled
at PrfaaS site k and sent to local site j, or prefilled at j. Whatever is prefilled at j decodes at j.
Variables are the rates of every group on every way, Lambda, and the prefill instances of every local
site; the rest is capacity. Equations 3-6 are the case of two groups with one way each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prfaas_lab.model.profile import Floats
from prfaas_lab.planner.classes import Classes
from prfaas_lab.planner.setting import Setting

if TYPE_CHECKING:
    from scipy.sparse import coo_array


@dataclass(frozen=True, kw_only=True)
class Group:
    """Requests that are treated alike: their share of all, and what one of them costs where."""

    share: float
    prefill_s: Mapping[str, float]
    """Seconds at each site the group may be prefilled at; a site that is missing is closed to it."""
    kv_bytes: Mapping[str, float]
    """Bytes sent, for each PrfaaS site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The best rate, the roles it needs, and where each group's prefill goes."""

    rate: float
    n_p: Mapping[str, int]
    remote_share: Floats
    """Of each group, in the order given."""


def best_flow(setting: Setting, groups: Sequence[Group], n_p: Mapping[str, int] | None = None) -> Flow:
    """The highest total rate, over all splits, and over all integer roles unless `n_p` fixes them."""
    problem = _Problem(setting, [group for group in groups if group.share > 0])
    if n_p is not None:
        return problem.flow(_solve(problem, n_p))
    if len(setting.fleet.local) > 1:
        return problem.flow(_solve(problem, problem.flow(_solve(problem, None, whole=True)).n_p))
    # The best rate is concave in the one N_p there is: the best whole one is next to the best fraction.
    site, fraction = setting.fleet.local[0], float(_solve(problem, None)[len(problem.ways)])
    near = {min(site.instances, max(0, math.floor(fraction) + step)) for step in (0, 1)}
    flows = [problem.flow(_solve(problem, {site.name: count})) for count in sorted(near)]
    return max(flows, key=lambda flow: flow.rate)


def _solve(problem: _Problem, n_p: Mapping[str, int] | None, *, whole: bool = False) -> Floats:
    from scipy.optimize import linprog  # with its libraries half a second's work: not at every start

    cost = np.zeros(problem.size)
    cost[problem.total] = -1.0
    answer = linprog(
        cost,
        A_ub=problem.capacities[0],
        b_ub=problem.capacities[1],
        A_eq=problem.balances,
        b_eq=np.zeros(len(problem.groups)),
        bounds=problem.bounds(n_p),
        integrality=problem.integrality() if whole else None,
        method="highs",
        options={"mip_rel_gap": 1e-9} if whole else {},
    )
    assert answer.status == 0, answer.message  # sending nothing is always feasible, and capacity is finite
    return np.asarray(answer.x)


def class_groups(setting: Setting, p: float, long: Classes, short: Classes) -> list[Group]:
    """The two groups of a threshold: the long prefilled by PrfaaS, the short locally. The first threshold
    of `long` and `short` counts."""
    far, here = setting.fleet.prfaas if p > 0 else (), setting.fleet.local if p < 1 else ()
    remote = Group(
        share=p,
        prefill_s={site.name: float(long.long_mean(site.profile.prefill)[0]) for site in far},
        kv_bytes={site.name: float(long.long_mean(site.profile.kvcache)[0]) for site in far},
    )
    local = Group(
        share=1 - p,
        prefill_s={site.name: float(short.short_mean(site.profile.prefill)[0]) for site in here},
        kv_bytes={},
    )
    return [remote, local]


class _Problem:
    """Columns: one rate per group and way, then the n_p of every local site, then Lambda."""

    def __init__(self, setting: Setting, groups: Sequence[Group]) -> None:
        self.setting, self.groups = setting, groups
        self.ways = [way for index, group in enumerate(groups) for way in self._ways(index, group)]
        self.total = len(self.ways) + len(setting.fleet.local)
        self.size = self.total + 1

    def _ways(self, index: int, group: Group) -> list[tuple[int, str, str]]:
        fleet = self.setting.fleet
        remote = [(index, k.name, j.name) for k in fleet.prfaas for j in fleet.local]
        return [
            way
            for way in remote + [(index, j.name, j.name) for j in fleet.local]
            if way[1] in group.prefill_s
        ]

    @cached_property
    def balances(self) -> coo_array:
        """Each group's rates sum to its share of Lambda."""
        rows = [index for index, _, _ in self.ways] + list(range(len(self.groups)))
        columns = [*range(len(self.ways)), *[self.total] * len(self.groups)]
        values = [1.0] * len(self.ways) + [-group.share for group in self.groups]
        return _sparse(values, rows, columns, shape=(len(self.groups), self.size))

    @cached_property
    def capacities(self) -> tuple[coo_array, Floats]:
        """Rows of `use <= capacity`, each divided by its capacity so that all are of one scale."""
        rows: list[tuple[dict[int, float], float]] = [
            (self._prefill_use(site.name), float(site.instances)) for site in self.setting.fleet.prfaas
        ]
        for cap in self.setting.caps():
            use = {
                c: 8 * self.groups[g].kv_bytes[k] for c, (g, k, j) in self._columns() if (k, j) in cap.pairs
            }
            rows.append((use, cap.rate_bps))
        for offset, site in enumerate(self.setting.fleet.local, start=len(self.ways)):
            rows.append((self._prefill_use(site.name) | {offset: -1.0}, 0.0))
            rate = self.setting.decode_rate(site)
            decode = {column: 1.0 for column, (_, _, j) in self._columns() if j == site.name}
            rows.append((decode | {offset: rate}, site.instances * rate))
        finite = [(use, limit) for use, limit in rows if np.isfinite(limit)]
        entries = [
            (r, c, v / (limit or 1.0)) for r, (use, limit) in enumerate(finite) for c, v in use.items()
        ]
        row, column, value = zip(*entries, strict=True)
        limits = np.asarray([1.0 if limit else 0.0 for _, limit in finite])
        return _sparse(value, row, column, shape=(len(finite), self.size)), limits

    def _columns(self) -> enumerate[tuple[int, str, str]]:
        return enumerate(self.ways)

    def _prefill_use(self, site: str) -> dict[int, float]:
        return {c: self.groups[g].prefill_s[site] for c, (g, k, _) in self._columns() if k == site}

    def bounds(self, n_p: Mapping[str, int] | None) -> list[tuple[float, float | None]]:
        """Rates from 0 up; roles between none and all, or as given."""
        roles: list[tuple[float, float | None]] = [
            (0, site.instances) if n_p is None else (n_p[site.name], n_p[site.name])
            for site in self.setting.fleet.local
        ]
        return [(0, None)] * len(self.ways) + roles + [(0, None)]

    def integrality(self) -> Floats:
        """Roles are whole instances."""
        whole = np.zeros(self.size)
        whole[len(self.ways) : self.total] = 1.0
        return whole

    def flow(self, x: Floats) -> Flow:
        """The answer in the problem's own terms."""
        rate, local = float(x[self.total]), {site.name for site in self.setting.fleet.local}
        remote = np.zeros(len(self.groups))
        for column, (group, source, _) in self._columns():
            if source not in local:
                remote[group] += x[column]
        asked = rate * np.asarray([group.share for group in self.groups])
        shares = np.divide(remote, asked, out=np.zeros_like(remote), where=asked > 0)
        roles = {
            site.name: round(float(x[column]))
            for column, site in enumerate(self.setting.fleet.local, start=len(self.ways))
        }
        return Flow(rate=rate, n_p=roles, remote_share=shares)


def _sparse(
    values: Sequence[float], rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int]
) -> coo_array:
    from scipy.sparse import coo_array

    return coo_array((values, (rows, columns)), shape=shape)
