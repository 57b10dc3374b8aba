"""The best deployment of a fleet under each policy: the paper's exhaustive search over (t, N_p)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from prfaas_lab import units
from prfaas_lab.errors import LabError
from prfaas_lab.model.profile import Floats
from prfaas_lab.planner import lengths
from prfaas_lab.planner.candidate import Candidate, judge, settled_rate
from prfaas_lab.planner.classes import Classes
from prfaas_lab.planner.deployment import Deployment, PolicyName
from prfaas_lab.planner.flow import best_flow, class_groups
from prfaas_lab.planner.grid import Grid, grid
from prfaas_lab.planner.roles import role_choices
from prfaas_lab.planner.setting import Setting

MOST_JUDGED = 1000
"""Candidates settled one by one where an SLO has the last word."""


def deploy_prfaas(setting: Setting) -> Deployment:
    """Threshold and roles together. Raises LabError when nothing meets the SLO, or there is no PrfaaS."""
    _needs_prfaas(setting, "prfaas")
    thresholds = lengths.thresholds(setting.lengths)
    if setting.fleet.is_plain and setting.extensions.slo.ttft_p90_s is None:
        search = _by_grid
    else:
        # Trying them one by one is dear: first to two digits, then to three around the most promising.
        search = _by_grid if setting.extensions.slo.ttft_p90_s is not None else _by_flow
        coarse = lengths.thresholds(setting.lengths, digits=2)
        thresholds = _near(setting, coarse, thresholds, search(setting, coarse))
    best = search(setting, thresholds)
    if best.lambda_max <= 0:
        raise LabError(
            "no threshold and no roles meet the SLO", remedy="allow a longer TTFT, or plan faster hardware"
        )
    return best


def deploy_homogeneous(setting: Setting) -> Deployment:
    """The same number of instances, all of local hardware; only the roles are chosen."""
    alone = replace(setting, fleet=setting.fleet.homogeneous())
    if alone.fleet.n_local < 2:
        raise LabError("one instance cannot both prefill and decode", remedy="plan at least two instances")
    cut = alone.lengths.support[1]
    table = grid(alone, np.asarray([cut]), role_choices(alone.fleet, least_prefill=1))
    return _best(
        alone,
        (
            Candidate(
                policy="homogeneous",
                threshold_tokens=None,
                cut=cut,
                p=0.0,
                n_p=table.roles[row],
                rate=float(table.rate[row, column]),
            )
            for row, column in table.ranked()
        ),
    )


def deploy_naive(setting: Setting) -> Deployment:
    """Every prefill on PrfaaS; every local instance decodes."""
    _needs_prfaas(setting, "naive")
    cut = setting.lengths.support[0] - 1.0
    none = {site.name: 0 for site in setting.fleet.local}
    table = grid(setting, np.asarray([cut]), [none])
    rate = float(table.rate[0, 0])
    return judge(
        setting, Candidate(policy="naive", threshold_tokens=None, cut=cut, p=1.0, n_p=none, rate=rate)
    )


def deploy_balanced(setting: Setting) -> Deployment:
    """Length-blind: requests of any length go to PrfaaS with the chance that balances equation 7."""
    _needs_prfaas(setting, "balanced")
    roles = role_choices(setting.fleet)
    low, high = setting.lengths.support
    all_long = grid(setting, np.asarray([low - 1.0]), roles).prfaas[0]
    pd = grid(setting, np.asarray([high]), roles)
    prefill = all_long + pd.pd_p[:, 0]
    rate = np.minimum(prefill, pd.pd_d)
    order = np.lexsort((-prefill, -rate))
    return _best(
        setting,
        (
            Candidate(
                policy="balanced",
                threshold_tokens=None,
                cut=low - 1.0,
                p=float(all_long / prefill[row]),
                n_p=roles[row],
                rate=float(rate[row]),
            )
            for row in order
        ),
    )


POLICIES: dict[PolicyName, Callable[[Setting], Deployment]] = {
    "prfaas": deploy_prfaas,
    "homogeneous": deploy_homogeneous,
    "naive": deploy_naive,
    "balanced": deploy_balanced,
}


def deploy(
    setting: Setting, policies: Iterable[PolicyName] = tuple(POLICIES)
) -> dict[PolicyName, Deployment]:
    """Each policy's best deployment; without a PrfaaS site, only the homogeneous one exists."""
    _can_decode(setting)
    wanted: Iterable[PolicyName] = policies if setting.fleet.prfaas else ("homogeneous",)
    return {name: POLICIES[name](setting) for name in wanted}


def _best(setting: Setting, candidates: Iterable[Candidate]) -> Deployment:
    """The best once settled. Candidates come highest equation 6 first, and settling never raises a rate,
    so that the search ends with the first that could not beat what is already found."""
    best, rate = None, 0.0
    for count, candidate in enumerate(candidates):
        if best is not None and (candidate.rate <= rate or count >= MOST_JUDGED):
            break
        settled = settled_rate(setting, candidate, above=rate)
        if best is None or settled > rate:
            best, rate = candidate, settled
    assert best is not None, "a fleet with a local site has at least one candidate"
    return judge(setting, best)


def _by_grid(setting: Setting, thresholds: Floats) -> Deployment:
    """The best cell of equation 6's grid, or the best once settled under an SLO."""
    return _best(setting, _by_threshold(grid(setting, thresholds, role_choices(setting.fleet))))


def _by_flow(setting: Setting, thresholds: Floats) -> Deployment:
    """The best threshold with the best roles of every site, where sites share caps or lack links.

    Equation 6 is an upper bound there, so that thresholds are tried from its highest value down.
    """
    ceiling = grid(setting, thresholds, role_choices(setting.fleet)).rate.max(axis=0)
    best, chosen = 0.0, (float(thresholds[0]), {site.name: 0 for site in setting.fleet.local})
    for column in np.argsort(-ceiling, kind="stable"):
        if ceiling[column] <= best:
            break
        classes = Classes(setting.lengths, setting.mode, thresholds[column : column + 1])
        flow = best_flow(setting, class_groups(setting, float(classes.p[0]), classes, classes))
        if flow.rate > best:
            best, chosen = flow.rate, (float(thresholds[column]), dict(flow.n_p))
    cell = grid(setting, np.asarray([chosen[0]]), [chosen[1]])
    return _best(setting, _by_threshold(cell))


def _near(setting: Setting, coarse: Floats, thresholds: Floats, first: Deployment) -> Floats:
    """The thresholds around the best coarse one, and around equation 6's best for each role choice."""
    columns = set(grid(setting, coarse, role_choices(setting.fleet)).rate.argmax(axis=1).tolist())
    columns.add(int(np.argmin(np.abs(coarse - (first.threshold_tokens or 0)))))
    near = np.zeros(thresholds.shape, dtype=bool)
    for column in columns:
        low, high = coarse[max(0, column - 1)], coarse[min(column + 1, coarse.size - 1)]
        near |= (thresholds >= low) & (thresholds <= high)
    return thresholds[near]


def _by_threshold(table: Grid) -> Iterator[Candidate]:
    rate, p = table.rate, table.classes.p
    for row, column in table.ranked():
        cut = float(table.classes.thresholds[column])
        yield Candidate(
            policy="prfaas",
            threshold_tokens=max(0, round(cut)),
            cut=cut,
            p=float(p[column]),
            n_p=table.roles[row],
            rate=float(rate[row, column]),
        )


def _needs_prfaas(setting: Setting, policy: str) -> None:
    if not setting.fleet.prfaas:
        raise LabError(f"policy {policy!r} needs a prfaas datacenter", remedy="plan homogeneous instead")


def _can_decode(setting: Setting) -> None:
    if any(setting.decode_rate(site) > 0 for site in setting.fleet.local):
        return
    least_s = min(site.profile.step_s(1) for site in setting.fleet.local)
    raise LabError(
        "no decode batch meets the TPOT asked for", remedy=f"allow {units.format_duration(least_s)} or more"
    )
