"""Claims about whole simulations: files, laws, and the same bytes for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prfaas_lab.errors import LabError
from prfaas_lab.lab.simulate import Simulation, simulate
from prfaas_lab.spec.load import load_scenario
from prfaas_lab.spec.scenario import Resolved, Scenario

ROOT = Path(__file__).parents[2]
FILES = ("summary.json", "requests.jsonl", "events.jsonl", "scenario.yaml")

FLEET = """
name: fleet
topology:
  name: fleet
  datacenters:
    east: {role: prfaas, hardware: 8xH200, engines: {prefill: 2}, egress: %s}
    west: {role: local, hardware: 8xH20, engines: {prefill: 2, decode: 3}}
  links:
    wan: {between: [east, west], rate: 100Gbit, delay: 20ms}
engine: {executor: paced}
workload:
  requests: 200
  arrivals: {kind: poisson, rate: 1.2/s}
  prompt: {kind: lognormal, mu: 9.9, sigma: 1.0, min: 128, max: 128Ki}
  output: {kind: fixed, tokens: 256}
policy: {name: threshold, threshold: 19400}
duration: 1h
verify: {share: 0}
"""


def fleet(tmp_path: Path, *, egress: str = "100Gbit", **changes: Any) -> Resolved:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET % egress)
    resolved = load_scenario(path)
    fields = {name: getattr(resolved.scenario, name) for name in Scenario.model_fields} | changes
    return resolved.model_copy(update={"scenario": Scenario.model_validate(fields)})


@pytest.mark.parametrize("name", ["smoke", "bursty", "kimi", "multi-turn", "mooncake"])
def test_a_shipped_scenario_simulates_and_every_request_is_served(name: str) -> None:
    summary = simulate(load_scenario(ROOT / "scenarios" / f"{name}.yaml"))
    assert summary["mode"] == "simulate"
    assert summary["fidelity"] == {"verdict": "VALID", "reasons": []}
    assert summary["completed"] == summary["submitted"] > 0


def test_the_same_seed_gives_the_same_files_to_the_last_byte(tmp_path: Path) -> None:
    resolved = load_scenario(ROOT / "scenarios" / "bursty.yaml")
    for run in ("one", "two"):
        simulate(resolved, Simulation(out=tmp_path / run))
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_is_given_up_at_the_end_is_so_in_the_same_order(tmp_path: Path) -> None:
    resolved = fleet(tmp_path, egress="100Mbit", drain_timeout=1.0)
    for run in ("one", "two"):
        assert simulate(resolved, Simulation(out=tmp_path / run))["failed"] > 20
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    assert (
        simulate(fleet(tmp_path, seed=1))["mean_ttft_ms"] != simulate(fleet(tmp_path, seed=2))["mean_ttft_ms"]
    )


def test_every_requests_hand_over_sums_to_its_ttft(tmp_path: Path) -> None:
    simulate(fleet(tmp_path), Simulation(out=tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 200
    for row in rows:
        assert row["violations"] == []
        assert sum(row["handover"].values()) == pytest.approx(row["ttft_ms"])
        assert row["emitted_tokens"] == row["output_tokens"]


def test_link_bytes_are_the_payload_and_its_headers(tmp_path: Path) -> None:
    simulate(fleet(tmp_path), Simulation(out=tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    payload = sum(row["received_bytes"] for row in rows if row["offloaded"])
    assert summary["links"]["wan"]["bytes"] == pytest.approx(payload / 0.956, rel=1e-6)


def test_a_scarce_egress_slows_the_offloaded_requests_and_no_others(tmp_path: Path) -> None:
    wide, scarce = simulate(fleet(tmp_path)), simulate(fleet(tmp_path, egress="2Gbit"))
    wire = {
        name: [s["handover"][name]["wire_ms"]["mean"] for s in (wide, scarce)]
        for name in ("offloaded", "local")
    }
    assert wire["offloaded"][1] > 10 * wire["offloaded"][0]
    assert wire["local"] == [0.0, 0.0]


def test_an_outage_that_never_ends_fails_what_is_under_way_when_draining_ends(tmp_path: Path) -> None:
    broken = fleet(
        tmp_path,
        workload={
            "requests": 3,
            "arrivals": {"kind": "uniform", "rate": 1.0},
            "prompt": {"kind": "fixed", "tokens": 50000},
            "output": {"kind": "fixed", "tokens": 4},
        },
        events=[{"at": 1.0, "link": "wan", "outage": 1e6}],
        drain_timeout=100.0,
    )
    summary = simulate(broken)
    assert (summary["completed"], summary["failed"]) == (2, 1), "later ones are prefilled at home"
    assert summary["failures"][0]["stage"] == "transfer"


def test_a_model_that_was_never_measured_is_refused_by_name() -> None:
    resolved = load_scenario(ROOT / "scenarios" / "smoke.yaml")
    other = resolved.scenario.model_copy(
        update={"model": resolved.scenario.model.model_copy(update={"name": "mine"})}
    )
    with pytest.raises(LabError, match="mine"):
        simulate(resolved.model_copy(update={"scenario": other}))


def test_compression_is_refused_where_there_are_no_bytes_to_compress() -> None:
    resolved = load_scenario(ROOT / "scenarios" / "smoke.yaml")
    transport = resolved.scenario.transport.model_copy(update={"compression": "zstd"})
    scenario = resolved.scenario.model_copy(update={"transport": transport})
    with pytest.raises(LabError, match="a simulation has none"):
        simulate(resolved.model_copy(update={"scenario": scenario}))
