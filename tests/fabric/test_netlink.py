"""pyroute2 bound to one namespace, and the options of ours in its plugin table."""

from __future__ import annotations

import errno
import secrets
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prfaas_lab.fabric import egress, interfaces, namespaces, netlink, qdisc, tc_options
from prfaas_lab.fabric.netlink import Netlink, NetlinkError
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.topology import GilbertElliott


def test_a_fabric_that_is_not_up_has_not_loaded_pyroute2() -> None:
    program = "import sys, prfaas_lab.fabric.network; print('pyroute2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_refusal_says_what_was_asked_and_why_not() -> None:
    with Netlink() as here, pytest.raises(NetlinkError, match="look up nowhere0: No such device") as caught:
        interfaces.index_of(here, "nowhere0")
    assert caught.value.code == errno.ENODEV


def test_a_kernel_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    with Netlink() as here:
        with monkeypatch.context() as patience:
            patience.setattr(netlink, "TIMEOUT_S", 0.01)
            with pytest.raises(NetlinkError, match="wait") as caught:
                here.call(lambda ip: answered.wait(10), "wait")
        answered.set()
        assert here.call(lambda ip: 1, "ask again") == 1
    assert caught.value.code == errno.ETIMEDOUT


def test_netem_is_told_times_in_nanoseconds_and_odds_of_2_to_the_32() -> None:
    shape = Shape(delay_s=5.0, jitter_s=100e-9, loss=0.25, duplicate=1.0)
    told = options_of(lambda spy: qdisc.add_netem(spy, 3, 0x10000, shape), tc_options.NetemOptions)
    assert told.get_attr("TCA_NETEM_LATENCY64") == 5_000_000_000  # 32 bits hold 4.3 s
    assert told.get_attr("TCA_NETEM_JITTER64") == 100
    assert (told["loss"], told["duplicate"]) == (round(0.25 * (2**32 - 1)), 2**32 - 1)
    assert len(told.get_attr("TCA_NETEM_DELAY_DIST")) == 4096


def test_netem_is_told_the_gilbert_elliott_model() -> None:
    shape = Shape(loss=GilbertElliott(p=0.02, r=0.2, loss_bad=0.75, loss_good=0.001))
    told = options_of(lambda spy: qdisc.change_netem(spy, 3, 0x10000, shape), tc_options.NetemOptions)
    odds = told.get_attr("TCA_NETEM_LOSS").get_attr("NETEM_LOSS_GE")
    shares = [odds[name] / (2**32 - 1) for name in ("p", "r", "h", "k1")]
    assert shares == pytest.approx([0.02, 0.2, 0.25, 0.001], abs=1e-9)
    assert told["loss"] == 0


@pytest.mark.parametrize("rate_bps", [1.0, 1e6, 12_345_678.9, 34e9, None])
def test_htb_is_told_a_rate_in_bytes_and_a_burst_in_ticks(rate_bps: float | None) -> None:
    told = options_of(
        lambda spy: qdisc.set_htb_rate(spy, 3, 0x20000, rate_bps, new=False), tc_options.HtbOptions
    ).get_attr("TCA_HTB_PARMS")
    expected = max(rate_bps or qdisc.UNSHAPED_BPS, 8.0) / 8
    assert told["rate"] == told["ceil"] == round(expected)
    burst_s = qdisc.burst_bytes(expected * 8) / round(expected)
    assert told["buffer"] * 64e-9 == pytest.approx(min(burst_s, (2**32 - 1) * 64e-9), abs=64e-9)
    assert told["rate_cell_log"] == told["ceil_cell_log"] == 0  # no rate tables


@pytest.mark.emulation
def test_calls_from_any_thread_speak_for_the_namespace(netns: str) -> None:
    with Netlink(netns) as there, ThreadPoolExecutor(4) as threads:
        interfaces.add_link(there, "here0", "ifb")
        found = list(threads.map(lambda _: interfaces.index_of(there, "here0"), range(40)))
        assert len(set(found)) == 1
    with Netlink() as outside, pytest.raises(NetlinkError):
        interfaces.index_of(outside, "here0")


@pytest.mark.emulation
def test_statistics_are_those_of_the_queue_asked_for(netns: str) -> None:
    with Netlink(netns) as there:
        interfaces.add_link(there, "if0", "ifb")
        index = interfaces.index_of(there, "if0")
        qdisc.add_rate(there, index, 1e6, 65536)
        assert qdisc.queue_stats(there, index, 0x20000).dropped_total == 0
        with pytest.raises(NetlinkError, match="read the queue"):
            qdisc.queue_stats(there, index, 0x90000)


@pytest.mark.emulation
def test_a_capped_egress_takes_every_packet_another_way(netns: str) -> None:
    with Netlink(netns) as there:
        for name in ("wan0", "wan1"):
            interfaces.add_link(there, name, "ifb")
        egress.cap_egress(there, ["wan0", "wan1"], 1e6)
        kinds = there.call(lambda ip: [q.get_attr("TCA_KIND") for q in ip.get_qdiscs()], "list the queues")
    assert kinds.count("clsact") == 2


@pytest.fixture
def netns() -> Any:
    name = f"pl-nl-{secrets.token_hex(3)}"
    namespaces.create(name)
    yield name
    namespaces.delete(name)


class Spy(Netlink):
    """Keeps what would be sent."""

    sent: bytes = b""

    def call(self, ask: Callable[[Any], Any], doing: str) -> Any:
        from pyroute2.iproute.linux import IPBatch

        with IPBatch() as batch:
            ask(batch)
            self.sent = bytes(batch.asyncore.batch)


def options_of(ask: Callable[[Netlink], None], kind: type) -> Any:
    """The TCA_OPTIONS of one tc request, decoded again."""
    with Spy() as spy:
        ask(spy)
    at = 16 + 20
    while True:
        length, number = struct.unpack_from("=HH", spy.sent, at)
        if number & 0x3FFF == 2:
            options = kind(data=spy.sent, offset=at)
            options.decode()
            return options
        at += (length + 3) & ~3
