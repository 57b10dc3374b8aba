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
from prfaas_lab.planner.deployment import Deployment, PolicyName
from prfaas_lab.planner.grid import Grid, grid
from prfaas_lab.planner.roles import role_choices
from prfaas_lab.planner.setting import Setting

MOST_JUDGED = 1000
"""Candidates looked at one by one where equation 6 is not the last word (several sites, an SLO)."""


def deploy_prfaas(setting: Setting) -> Deployment:
    """Threshold and roles together. Raises LabError when nothing meets the SLO, or there is no PrfaaS."""
    _needs_prfaas(setting, "prfaas")
    law, roles = setting.lengths, role_choices(setting.fleet)
    thresholds = lengths.thresholds(law)
    if not _equation_6_decides(setting):
        # Judging one by one is dear: first to two digits, then to three around the most promising.
        coarse = grid(setting, lengths.thresholds(law, digits=2), roles)
        first = _best(setting, _by_threshold(coarse))
        thresholds = _near(coarse, thresholds, first)
    best = _best(setting, _by_threshold(grid(setting, thresholds, roles)))
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


def _equation_6_decides(setting: Setting) -> bool:
    return setting.fleet.is_plain and setting.extensions.slo.ttft_p90_s is None


def _near(coarse: Grid, thresholds: Floats, first: Deployment) -> Floats:
    """The thresholds around the best coarse one, and around equation 6's best for each role choice."""
    tried = coarse.classes.thresholds
    columns = {int(column) for column in coarse.rate.argmax(axis=1)}
    columns.add(int(np.argmin(np.abs(tried - (first.threshold_tokens or 0)))))
    near = np.zeros(thresholds.shape, dtype=bool)
    for column in columns:
        low, high = tried[max(0, column - 1)], tried[min(column + 1, tried.size - 1)]
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
