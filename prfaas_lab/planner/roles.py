"""Which local instances prefill and which decode: every choice there is to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

from prfaas_lab.errors import LabError
from prfaas_lab.planner.fleet import Fleet, Site

MOST_CHOICES = 20_000


def role_choices(fleet: Fleet, *, least_prefill: int = 0) -> list[dict[str, int]]:
    """N_p of each local site, for every total that leaves at least one instance to decode.

    Sites of equal hardware are one pool, whose total is spread over them by size: by equations 4-5 only
    the total counts. Raises LabError when pools are so many that the choices cannot be searched.
    """
    pools: dict[str, list[Site]] = {}
    for site in fleet.local:
        pools.setdefault(site.profile.hardware, []).append(site)
    totals = [sum(site.instances for site in sites) for sites in pools.values()]
    if math.prod(total + 1 for total in totals) > MOST_CHOICES:
        raise LabError(
            f"{len(pools)} kinds of local hardware with {totals} instances have more than "
            f"{MOST_CHOICES} divisions into prefill and decode",
            remedy="plan fewer sites at a time",
        )
    choices = product(*(range(total + 1) for total in totals))
    return [
        _spread_all(list(pools.values()), choice)
        for choice in choices
        if least_prefill <= sum(choice) < sum(totals)
    ]


def pairs(fleet: Fleet, n_p: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """(N_p, N_d) of each local site."""
    return {site.name: (n_p[site.name], site.instances - n_p[site.name]) for site in fleet.local}


def _spread_all(pools: list[list[Site]], totals: tuple[int, ...]) -> dict[str, int]:
    spread: dict[str, int] = {}
    for sites, total in zip(pools, totals, strict=True):
        spread |= _spread(sites, total)
    return spread


def _spread(sites: list[Site], total: int) -> dict[str, int]:
    """`total` over the sites in proportion to their instances, the largest remainders rounded up."""
    whole = sum(site.instances for site in sites)
    exact = {site.name: total * site.instances / whole for site in sites}
    floors = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: floors[name] - exact[name])
    for name in by_remainder[: total - sum(floors.values())]:
        floors[name] += 1
    return floors
