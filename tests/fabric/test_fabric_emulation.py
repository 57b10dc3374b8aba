"""What the file says is what the packets meet: the same claims for every shaper, measured.

Each claim is about what the network does, not about how busy this machine is: where other work can
spoil a measurement, the best of three counts. A wrong shaper is wrong all three times.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tries import best

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import namespaces
from prfaas_lab.fabric.flood import Flood
from prfaas_lab.fabric.network import Fabric, up
from prfaas_lab.fabric.ownership import Ownership, clean
from prfaas_lab.fabric.plan import DATA_PORT
from prfaas_lab.fabric.probe import SHAPERS, Probe, probe
from prfaas_lab.fabric.probes import Way, goodput_bps, record_stream, round_trip_s
from prfaas_lab.fabric.shape import ACHIEVABLE, Shape
from prfaas_lab.spec.topology import GilbertElliott, Topology

pytestmark = pytest.mark.emulation

RUNS = os.environ.setdefault("PRFAAS_LAB_TEST_RUNS", f"t{secrets.token_hex(3)}")
"""What the ids of our runs begin with, in this process and its children: others may run here too."""
SLOWNESS = float(os.environ.get("PRFAAS_LAB_TEST_SLOWNESS", "1"))
"""How many times slower than real hardware this machine is: it gets so much less to carry, and longer."""
MBIT = 1e6 / SLOWNESS
QUEUE_BYTES = int(512 * 1024 / SLOWNESS)
RATE_TOLERANCE = 0.03


# -- the claims --------------------------------------------------------------------------------


@pytest.mark.realtime
def test_round_trip_is_both_delays(shaper: str) -> None:
    with network(shaper, delay="20ms") as fabric:
        best(lambda: near(shortest_trip_s(fabric), 0.040, share=0.05, slack=0.001 * SLOWNESS))


@pytest.mark.realtime
def test_goodput_is_the_achievable_share_of_the_rate(shaper: str) -> None:
    with network(shaper, rate="40Mbit", delay="5ms") as fabric:
        best(lambda: near(goodput(fabric), 40 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))


@pytest.mark.realtime
def test_each_direction_has_its_own_rate(shaper: str) -> None:
    directions = {"forward": {"rate": "40Mbit"}, "backward": {"rate": "20Mbit", "delay": "15ms"}}
    with network(shaper, delay="5ms", **directions) as fabric:
        best(lambda: near(goodput(fabric), 40 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))
        best(lambda: near(goodput(fabric, back=True), 20 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))
        best(lambda: near(shortest_trip_s(fabric), 0.020, share=0.05, slack=0.001 * SLOWNESS))


@pytest.mark.realtime
def test_a_rate_step_is_seen_at_once_and_frees_no_burst(shaper: str) -> None:
    fast = Shape(rate_bps=20 * MBIT, delay_s=0.005, queue_bytes=QUEUE_BYTES)
    slow = dataclasses.replace(fast, rate_bps=10 * MBIT)
    with network(shaper, rate="20Mbit", delay="5ms", queue="512KiB") as fabric:

        def attempt() -> None:
            fabric.change("wan", "east", fast)
            with traffic(fabric, 30 * MBIT) as flow:
                time.sleep(0.8)
                stepped_s = fabric.change("wan", "east", slow)
                time.sleep(0.6)
            near(flow.rate_bps(stepped_s - 0.4, stepped_s), 20 * MBIT, share=0.05)
            near(flow.rate_bps(stepped_s + 0.1, stepped_s + 0.5), 10 * MBIT, share=0.05)
            starts = [stepped_s - 0.05 + 0.005 * i for i in range(60)]
            fastest = max(flow.rate_bps(start, start + 0.03) for start in starts)
            assert fastest < 1.25 * 20 * MBIT, f"an unshaped spike of {fastest / MBIT:.0f} Mbit/s"
            if isinstance(flow, Flood):
                numbers = [arrival.number for arrival in flow.arrivals]
                # What does not fit is dropped here and there; a queue thrown away is 346 in a row.
                assert max(b - a for a, b in itertools.pairwise(numbers)) < 200

        best(attempt)


@pytest.mark.realtime
def test_a_step_up_is_followed_too(shaper: str) -> None:
    with network(shaper, rate="10Mbit", delay="5ms") as fabric:

        def attempt() -> None:
            fabric.change("wan", "east", Shape(rate_bps=10 * MBIT, delay_s=0.005))
            with traffic(fabric, 30 * MBIT) as flow:
                time.sleep(0.5)
                stepped_s = fabric.change("wan", "east", Shape(rate_bps=20 * MBIT, delay_s=0.005))
                time.sleep(0.6)
            near(flow.rate_bps(stepped_s + 0.1, stepped_s + 0.5), 20 * MBIT, share=0.05)

        best(attempt)


@pytest.mark.realtime
def test_an_outage_stops_all_bytes_and_ends(shaper: str) -> None:
    normal = Shape(rate_bps=20 * MBIT, delay_s=0.005)
    with network(shaper, rate="20Mbit", delay="5ms") as fabric:

        def attempt() -> None:
            with traffic(fabric, 30 * MBIT) as flow:
                time.sleep(1.0)
                cut_s = fabric.change("wan", "east", Shape(rate_bps=0.0, delay_s=0.005))
                time.sleep(0.5)
                mended_s = fabric.change("wan", "east", normal)
                time.sleep(1.0)
            assert flow.rate_bps(cut_s - 0.3, cut_s) > 15 * MBIT
            assert flow.rate_bps(cut_s + 0.06, mended_s) == 0
            assert flow.rate_bps(mended_s + 0.3, mended_s + 0.9) > 15 * MBIT

        best(attempt)


@pytest.mark.realtime
def test_loss_is_the_share_asked_for(packets: str) -> None:
    with network(packets, loss=0.05) as fabric:

        def attempt() -> None:
            sent, arrived = thin_stream(fabric)
            expected, deviation = sent * 0.05, (sent * 0.05 * 0.95) ** 0.5
            assert abs(sent - len(arrived) - expected) <= 3 * deviation

        best(attempt, of=2)


@pytest.mark.realtime
def test_gilbert_elliott_loses_in_bursts(packets: str) -> None:
    bursty = GilbertElliott(p=0.02, r=0.2)
    with network(packets, delay="1ms") as fabric:
        fabric.change("wan", "east", Shape(delay_s=0.001, loss=bursty))

        def attempt() -> None:
            sent, arrived = thin_stream(fabric)
            bursts = [
                after - before - 1 for before, after in itertools.pairwise(arrived) if after > before + 1
            ]
            assert (sent - len(arrived)) / sent == pytest.approx(0.02 / 0.22, rel=0.4)
            assert statistics.mean(bursts) == pytest.approx(1 / 0.2, rel=0.35)

        best(attempt, of=2)


@pytest.mark.realtime
def test_jitter_spreads_delays_around_their_mean(packets: str) -> None:
    with network(packets, delay="20ms", jitter="3ms", distribution="normal") as fabric:

        def attempt() -> None:
            with flood(fabric, 0.1e6, datagram_bytes=100) as flow:
                time.sleep(3.0)
            delays = [arrival.delay_s for arrival in flow.arrivals]
            assert statistics.median(delays) == pytest.approx(0.020, abs=0.0025)
            quartiles = statistics.quantiles(delays, n=4)
            assert quartiles[2] - quartiles[0] == pytest.approx(1.349 * 0.003, rel=0.35)

        best(attempt)


@pytest.mark.realtime
def test_delays_of_chained_links_add_up(shaper: str) -> None:
    links = {"one": link("east", "middle", delay="10ms"), "two": link("middle", "west", delay="15ms")}
    sites = {"east": prfaas(), "middle": local(), "west": local()}
    with network(shaper, sites, links) as fabric:
        best(lambda: near(shortest_trip_s(fabric), 0.050, share=0.05, slack=0.001 * SLOWNESS))


@pytest.mark.realtime
def test_the_narrowest_of_chained_links_is_the_rate(shaper: str) -> None:
    links = {"one": link("east", "middle", rate="40Mbit"), "two": link("middle", "west", rate="20Mbit")}
    sites = {"east": prfaas(), "middle": local(), "west": local()}
    with network(shaper, sites, links) as fabric:
        best(lambda: near(goodput(fabric), 20 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))


@pytest.mark.realtime
def test_engines_of_a_datacenter_share_its_wan_rate(shaper: str) -> None:
    sites = {"east": prfaas(2), "west": local(2)}
    with network(shaper, sites, {"wan": link("east", "west", rate="40Mbit", delay="5ms")}) as fabric:
        pairs = [("east-p0", "west-d0"), ("east-p1", "west-d1")]
        ways = [engines_way(fabric, *pair) for pair in pairs]
        best(lambda: near(sum(together(ways)), 40 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))


@pytest.mark.realtime
def test_egress_caps_all_links_of_a_datacenter_together(packets: str) -> None:
    sites = {"east": prfaas(2) | {"egress": "40Mbit"}, "west": local(), "south": local()}
    links = {name: link("east", name, rate="30Mbit", delay="5ms") for name in ("west", "south")}
    with network(packets, sites, links) as fabric:
        ways = [engines_way(fabric, f"east-p{i}", f"{name}-d0") for i, name in enumerate(("west", "south"))]
        best(lambda: near(goodput(fabric), 30 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))
        best(lambda: near(sum(together(ways)), 40 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))


@pytest.mark.realtime
def test_engine_links_have_their_own_rate(packets: str) -> None:
    sites = {"east": prfaas() | {"intra": {"rate": "20Mbit"}}, "west": local()}
    with network(packets, sites, {"wan": link("east", "west", rate="40Mbit", delay="2ms")}) as fabric:
        best(lambda: near(goodput(fabric), 20 * MBIT * ACHIEVABLE, share=RATE_TOLERANCE))


@pytest.mark.realtime
def test_engine_links_have_their_own_delay_or_it_is_refused(packets: str) -> None:
    sites = {"east": prfaas() | {"intra": {"delay": "3ms"}}, "west": local()}
    links = {"wan": link("east", "west", delay="10ms")}
    if packets == "netem":
        with network(packets, sites, links) as fabric:
            best(lambda: near(shortest_trip_s(fabric), 0.026, share=0.05, slack=0.001 * SLOWNESS))
    else:
        with pytest.raises(FabricError, match=r"east\.intra: without netem"), network(packets, sites, links):
            pass


@pytest.mark.realtime
@pytest.mark.parametrize("packets", ["netem"], indirect=True)
def test_reordering_and_duplication_are_the_shares_asked_for(packets: str) -> None:
    with network(packets, delay="10ms", reorder=0.1) as fabric:

        def reordered() -> None:
            with flood(fabric, 2e6, datagram_bytes=100) as flow:
                time.sleep(2.0)
            at_once = sum(arrival.delay_s < 0.005 for arrival in flow.arrivals)
            assert at_once / flow.sent == pytest.approx(0.1, rel=0.25)

        best(reordered, of=2)
    with network(packets, delay="1ms", duplicate=0.1) as fabric:

        def duplicated() -> None:
            sent, arrived = thin_stream(fabric)
            assert len(set(arrived)) == sent
            assert (len(arrived) - sent) / sent == pytest.approx(0.1, rel=0.25)

        best(duplicated, of=2)


@pytest.mark.realtime
@pytest.mark.parametrize("packets", ["netem"], indirect=True)
def test_corrupted_packets_do_not_arrive(packets: str) -> None:
    with network(packets, delay="1ms", corrupt=0.1) as fabric:

        def attempt() -> None:
            sent, arrived = thin_stream(fabric)
            assert (sent - len(arrived)) / sent == pytest.approx(0.1, rel=0.25)

        best(attempt, of=2)


@pytest.mark.realtime
def test_counters_count_what_was_carried(shaper: str) -> None:
    with network(shaper, rate="40Mbit", delay="2ms") as fabric:
        way = engines_way(fabric)

        def attempt() -> None:
            before = fabric.counters("wan", "east")
            arrivals = record_stream(way, duration_s=0.7)
            after = fabric.counters("wan", "east")
            carried = after.bytes_total - before.bytes_total
            assert carried >= arrivals[-1][1]
            assert carried == pytest.approx(arrivals[-1][1] / ACHIEVABLE, rel=0.15)
            assert after.packets_total > before.packets_total

        best(attempt)


def test_what_a_shaper_cannot_do_is_refused_before_anything_is_made(shaper: str) -> None:
    cannot = {"tun": {"corrupt": 0.01}, "relay": {"loss": 0.01}, "netem": {"rate": "100Gbit"}}
    before = our_namespaces()
    with pytest.raises(FabricError, match="link wan from east"), network(shaper, **cannot[shaper]):
        pass
    assert our_namespaces() == before


def test_teardown_leaves_nothing(shaper: str) -> None:
    before, ownership = machine_state(), Ownership(run_id())
    with up(world(rate="40Mbit"), run_id=ownership.run_id, ownership=ownership, shaper=shaper) as fabric:
        assert fabric.shaper == shaper
        round_trip_s(engines_way(fabric))
    assert ownership.release() == [f"journal {ownership.directory}"]
    assert machine_state() == before
    with pytest.raises(ZeroDivisionError), network(shaper, rate="40Mbit"):
        raise ZeroDivisionError
    assert machine_state() == before


def test_a_killed_run_is_cleaned_and_a_live_one_left_alone(shaper: str, tmp_path: Path) -> None:
    before = our_namespaces()
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, 'tests/fabric')\n"
        "import test_fabric_emulation as t\n"
        f"with t.network({shaper!r}, rate='40Mbit', root=Path(sys.argv[1])):\n"
        "    print('up', flush=True); time.sleep(60)"
    )
    with network(shaper, rate="40Mbit", delay="2ms", root=tmp_path) as alive:
        victim = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"up\n"
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        removed = clean(root=tmp_path)
        assert sum("journal" in what for what in removed) == 1
        assert sum("network namespace" in what for what in removed) == (0 if shaper == "relay" else 4)
        near(shortest_trip_s(alive), 0.004, share=0.5, slack=0.01)
    assert our_namespaces() == before


# -- how they are measured -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def found() -> Probe:
    return probe()


@pytest.fixture(params=SHAPERS)
def shaper(request: pytest.FixtureRequest, found: Probe) -> str:
    """Every shaper that this kernel allows."""
    return allowed(request, found)


@pytest.fixture(params=[name for name in SHAPERS if name != "relay"])
def packets(request: pytest.FixtureRequest, found: Probe) -> str:
    """Every shaper of packets; the relay carries streams, and refuses what only packets can meet."""
    return allowed(request, found)


def allowed(request: pytest.FixtureRequest, found: Probe) -> str:
    name: str = request.param
    if trouble := found.missing(name):
        pytest.skip(f"no {name} here: {trouble}")
    announce(request, f"shaper: {name}")
    return name


def announce(request: pytest.FixtureRequest, line: str, said: set[str] = set()) -> None:  # noqa: B006
    """Say once, past pytest's capture, what is really exercised."""
    if line not in said:
        said.add(line)
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)


@contextmanager
def network(
    shaper: str, sites: dict[str, Any] | None = None, links: dict[str, Any] | None = None, *,
    root: Path | None = None, **impairment: Any,
) -> Iterator[Fabric]:  # fmt: skip
    topology, ownership = world(sites, links, **impairment), Ownership(run_id(), root=root)
    try:
        with up(topology, run_id=ownership.run_id, ownership=ownership, shaper=shaper, seed=1) as fabric:
            yield fabric
    finally:
        ownership.release()


def world(
    sites: dict[str, Any] | None = None, links: dict[str, Any] | None = None, **impairment: Any
) -> Topology:
    return Topology.model_validate(
        {
            "name": "test",
            "datacenters": slowed(sites or {"east": prfaas(), "west": local()}),
            "links": slowed(links or {"wan": link("east", "west", **impairment)}),
        }
    )


def slowed(value: Any) -> Any:
    """A part of a topology with its Mbit rates, and the queues for them, as this machine can carry."""
    match value:
        case dict():
            return {name: slowed(part) for name, part in value.items()}
        case str() if found := re.fullmatch(r"(\d+)(Mbit|KiB)", value):
            return f"{float(found[1]) / SLOWNESS:g}{found[2]}"
        case _:
            return value


def prfaas(engines: int = 1) -> dict[str, Any]:
    return {"role": "prfaas", "engines": {"prefill": engines}}


def local(engines: int = 1) -> dict[str, Any]:
    return {"role": "local", "engines": {"decode": engines}}


def link(one: str, other: str, **impairment: Any) -> dict[str, Any]:
    return {"between": [one, other], **impairment}


def engines_way(fabric: Fabric, source: str = "east-p0", destination: str = "west-d0") -> Way:
    """From engine to engine, as KVCache goes."""
    return Way(
        source=lambda: fabric.socket(source),
        destination=lambda: fabric.socket(destination),
        listen=(fabric.nodes[destination].address, DATA_PORT),
        dial=(fabric.endpoint(source, destination), DATA_PORT),
    )


def shortest_trip_s(fabric: Fabric) -> float:
    """Between engines. Beside busy processes both ends wake late, by more than a test allows, more often
    than not: what the network itself takes is the least."""
    return round_trip_s(engines_way(fabric), samples=100, of=min)


def goodput(fabric: Fabric, *, back: bool = False) -> float:
    ends = ("west-d0", "east-p0") if back else ("east-p0", "west-d0")
    return goodput_bps(engines_way(fabric, *ends), warm_up_s=0.5 * SLOWNESS, window_s=0.1 * SLOWNESS)


def together(ways: list[Way]) -> list[float]:
    """Goodput of several ways at the same time."""
    rates: list[float] = []
    threads = [
        threading.Thread(
            target=lambda way=way: rates.append(
                goodput_bps(way, warm_up_s=0.6 * SLOWNESS, window_s=0.1 * SLOWNESS)
            )
        )
        for way in ways
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rates) == len(ways)
    return rates


class Stream:
    """A TCP stream in place of a flood, where there are no packets to see. Counts what its bytes
    would be on a wire."""

    def __init__(self, fabric: Fabric) -> None:
        self._way, self._stop = engines_way(fabric), threading.Event()
        self._begin_s, self._arrivals = 0.0, [(0.0, 0)]
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self._arrivals = record_stream(self._way, duration_s=30.0, streams=1, stop=self._stop)

    def rate_bps(self, start_s: float, end_s: float) -> float:
        first, last = (
            max((got for at, got in self._arrivals if at <= edge - self._begin_s), default=0)
            for edge in (start_s, end_s)
        )
        return (last - first) * 8 / ACHIEVABLE / (end_s - start_s)

    def __enter__(self) -> Stream:
        self._begin_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def traffic(fabric: Fabric, rate_bps: float) -> Flood | Stream:
    """More than the link can carry."""
    return Stream(fabric) if fabric.shaper == "relay" else flood(fabric, rate_bps)


def flood(fabric: Fabric, rate_bps: float, *, datagram_bytes: int = 1472) -> Flood:
    destination = fabric.socket("west-d0", socket.SOCK_DGRAM)
    destination.bind((fabric.nodes["west-d0"].address, 0))
    source = fabric.socket("east-p0", socket.SOCK_DGRAM)
    return Flood(source, destination, rate_bps, datagram_bytes=datagram_bytes)


def thin_stream(fabric: Fabric) -> tuple[int, list[int]]:
    """(sent, numbers of those that arrived) of some thousand small packets that no queue drops."""
    with flood(fabric, 2e6, datagram_bytes=100) as flow:
        time.sleep(2.0)
    return flow.sent, [arrival.number for arrival in flow.arrivals]


def near(measured: float, expected: float, *, share: float, slack: float = 0.0) -> None:
    allowed = share * expected + slack
    assert abs(measured - expected) <= allowed, f"{measured:.6g}, expected {expected:.6g} +- {allowed:.3g}"


def run_id() -> str:
    return f"{RUNS}-{secrets.token_hex(3)}"


def our_namespaces() -> set[str]:
    return {path.name for path in namespaces.NETNS_DIRECTORY.glob(f"pl-{RUNS}-*")}


def machine_state() -> tuple[set[str], set[str], set[str], int]:
    """What a run could leave: namespaces, interfaces, child processes, open files."""
    interfaces = {name for _, name in socket.if_nameindex() if name.startswith(("wan", "lan", "egress"))}
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as listing:
        children = set(listing.read().split())
    return our_namespaces(), interfaces, children, len(os.listdir("/proc/self/fd"))


def test_what_a_killed_probe_leaves_is_found_by_clean() -> None:
    code = """
import os, signal
from prfaas_lab.fabric.probe import _throwaway
with _throwaway() as name:
    print(name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    name = killed.stdout.strip()
    assert namespaces.exists(name), killed.stderr
    assert f"network namespace {name}" in clean()
    assert not namespaces.exists(name)
