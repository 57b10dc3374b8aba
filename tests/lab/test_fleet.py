"""The fleet's ranking against going through every engine, whatever happens to them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.lab.engines import Engine, Hold
from prfaas_lab.lab.fleet import Fleet
from prfaas_lab.router.values import DatacenterView, View


def engines() -> list[Engine]:
    client: Any = None
    return [
        Engine(name=f"{site}-{role[0]}{n}", datacenter=site, role=role, client=client, capacity=2)
        for site in ("east", "west")
        for role in ("prefill", "decode")
        for n in range(3)
    ]


happenings_of_some = st.sampled_from(["hold", "computed", "release", "die", "rise"])
steps = st.lists(st.tuples(happenings_of_some, st.integers(0, 11), st.integers(0, 3)), max_size=60)


@given(steps)
def test_the_ranking_is_that_of_a_look_at_every_engine(happenings: list[tuple[str, int, int]]) -> None:
    fleet_engines = engines()
    fleet, holds = Fleet(fleet_engines), dict[int, list[Hold]]()
    sites = tuple(DatacenterView(name=name, role="local") for name in ("east", "west"))
    for number, (what, which, tokens) in enumerate(happenings):
        engine, held = fleet_engines[which], holds.setdefault(which, [])
        match what:
            case "hold":
                held.append(Hold(engine, f"r{number}", tokens))
            case "computed" if held:
                held[0].computed()
            case "release" if held:
                held.pop(0).release()
            case "die" | "rise":
                engine.alive = what == "rise"
        slow = View(datacenters=sites, engines=tuple(e.view for e in fleet_engines))
        quick = View(datacenters=sites, engines=fleet.views(), ranks=fleet)
        assert quick == slow
        for site in ("east", "west"):
            assert quick.idlest("prefill", site) == slow.idlest("prefill", site)
            assert quick.idlest("decode", site) == slow.idlest("decode", site)
