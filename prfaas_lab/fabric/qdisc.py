"""Queueing disciplines: what `tc qdisc` and `tc class` do, and their statistics."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any

from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.shape import Counters, Shape
from prfaas_lab.spec.topology import GilbertElliott

ROOT = 0xFFFFFFFF
TICK_NS = 64
"""The kernel's packet scheduler counts time in these."""
U32 = 0xFFFFFFFF
UNSHAPED_BPS = 34e9
"""Stands for `no rate`: more than one core can send, and what 32 bits of byte/s can say."""
NETEM_LIMIT_PACKETS = 1_000_000
"""What the delay line may hold. netem's own 1000 throttles a fat link; here the queue's limit in bytes
decides what is dropped, so this one only has to be out of the way."""
_DISTRIBUTION_ENTRIES, _DISTRIBUTION_SCALE = 4096, 8192


def add_netem(netlink: Netlink, interface: int, handle: int, shape: Shape, *, parent: int = ROOT) -> None:
    """Delay, jitter, loss, reordering, duplication and corruption of a shape; not its rate."""
    options = _netem(shape)
    netlink.call(
        lambda ip: ip.tc("add", "netem", interface, handle, parent=parent, options=options), "add netem"
    )


def change_netem(netlink: Netlink, interface: int, handle: int, shape: Shape, *, parent: int = ROOT) -> None:
    """The same in place: what it holds stays where it is."""
    options = _netem(shape)
    netlink.call(
        lambda ip: ip.tc("change", "netem", interface, handle, parent=parent, options=options), "change netem"
    )


def add_htb(netlink: Netlink, interface: int, handle: int, *, parent: int = ROOT) -> None:
    """A token-bucket tree whose class `handle + 1` takes all packets."""
    tree = {"version": 3, "rate2quantum": 10, "defcls": 1, "debug": 0, "direct_pkts": 0}
    options = {"attrs": [("TCA_HTB_INIT", tree)]}
    netlink.call(lambda ip: ip.tc("add", "htb", interface, handle, parent=parent, options=options), "add htb")


def set_htb_rate(netlink: Netlink, interface: int, handle: int, rate_bps: float | None, *, new: bool) -> None:
    """The rate of the class `handle + 1`. Its tokens stay as they are: a change frees no burst."""
    command, options = "add-class" if new else "change-class", _htb_class(rate_bps)
    netlink.call(
        lambda ip: ip.tc(command, "htb", interface, handle | 1, parent=handle, options=options),
        "set the htb rate",
    )


def graft_bfifo(netlink: Netlink, interface: int, handle: int, parent: int, limit_bytes: int) -> None:
    """A drop-tail queue of so many bytes; one with another handle takes the place of the old, whose
    packets are lost, one with the same handle only changes its limit."""
    options = {"limit": min(limit_bytes, U32)}
    netlink.call(
        lambda ip: ip.tc("replace", "bfifo", interface, handle, parent=parent, options=options),
        "set the queue limit",
    )


def add_rate(netlink: Netlink, interface: int, rate_bps: float, limit_bytes: int) -> None:
    """Nothing but a rate and a queue limit, at an interface's root."""
    add_htb(netlink, interface, 0x20000)
    set_htb_rate(netlink, interface, 0x20000, rate_bps, new=True)
    graft_bfifo(netlink, interface, 0x30000, 0x20001, limit_bytes)


def queue_stats(netlink: Netlink, interface: int, handle: int) -> Counters:
    """The statistics of one qdisc."""
    from pyroute2.netlink.rtnl import RTM_GETQDISC
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    question = tcmsg().setvalue({"index": interface, "handle": handle})
    stats = netlink.read(question, RTM_GETQDISC, "read the queue").get_attr("TCA_STATS2")
    carried, queue = stats.get_attr("TCA_STATS_BASIC"), stats.get_attr("TCA_STATS_QUEUE")
    return Counters(
        bytes_total=carried["bytes"],
        packets_total=carried["packets"],
        dropped_total=queue["drops"],
        backlog_bytes=queue["backlog"],
    )


def burst_bytes(rate_bps: float) -> int:
    """What may leave at once: 4 ms of the rate bridges a late timer, and two full frames at least."""
    return max(math.ceil(rate_bps / 8 / 250), 2 * 1514)


def _netem(shape: Shape) -> dict[str, Any]:
    """netem's options, every one of them, because a change keeps what it does not name."""
    lost = shape.loss if isinstance(shape.loss, float | int) else 0.0
    # With a rate, however high, netem keeps packets in order under jitter, as a queue on a real path
    # does. Reordering is asked for by its own name.
    in_order_bps = int(100e9 / 8) if shape.jitter_s else 0
    capped = {"rate": min(in_order_bps, U32), "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0}
    delays = {"delay_corr": _share(shape.delay_correlation), "loss_corr": 0, "dup_corr": 0}
    options: list[tuple[str, Any]] = [
        ("TCA_NETEM_LATENCY64", round(shape.delay_s * 1e9)),
        ("TCA_NETEM_JITTER64", round(shape.jitter_s * 1e9)),
        ("TCA_NETEM_CORR", delays),
        ("TCA_NETEM_REORDER", {"prob_reorder": _share(shape.reorder), "corr_reorder": 0}),
        ("TCA_NETEM_CORRUPT", {"prob_corrupt": _share(shape.corrupt), "corr_corrupt": 0}),
        ("TCA_NETEM_RATE", capped),
        ("TCA_NETEM_RATE64", in_order_bps),
        ("TCA_NETEM_DELAY_DIST", _distribution(shape.distribution)),
    ]
    if isinstance(shape.loss, GilbertElliott):
        model = shape.loss
        odds = {"p": model.p, "r": model.r, "h": 1 - model.loss_bad, "k1": model.loss_good}
        gilbert = {name: _share(odd) for name, odd in odds.items()}
        options.append(("TCA_NETEM_LOSS", {"attrs": [("NETEM_LOSS_GE", gilbert)]}))
    return {
        "delay": 0,
        "limit": NETEM_LIMIT_PACKETS,
        "loss": _share(lost),
        "gap": 1 if shape.reorder else 0,
        "duplicate": _share(shape.duplicate),
        "jitter": 0,
        "attrs": options,
    }


@functools.cache
def _distribution(name: str) -> tuple[int, ...]:
    """netem's table of a distribution: quantiles in units of 1/8192 deviation (tc's maketable)."""
    size, normal = _DISTRIBUTION_ENTRIES, NormalDist()
    quantiles = [(i + 0.5) / size for i in range(size)]
    # Pareto with shape 3, brought to mean 0 and deviation 1; `paretonormal` is a quarter normal.
    mean, deviation = 1.5, math.sqrt(0.75)
    gaussian = [normal.inv_cdf(q) for q in quantiles]
    pareto = [((1 - q) ** (-1 / 3) - mean) / deviation for q in quantiles]
    tables = {
        "uniform": [2 * q - 1 for q in quantiles],
        "normal": gaussian,
        "pareto": pareto,
        "paretonormal": [0.25 * g + 0.75 * p for g, p in zip(gaussian, pareto, strict=True)],
    }
    scaled = (round(value * _DISTRIBUTION_SCALE) for value in tables[name])
    return tuple(min(max(value, -32768), 32767) for value in scaled)


def _htb_class(rate_bps: float | None) -> dict[str, Any]:
    rate_bps = UNSHAPED_BPS if rate_bps is None else max(rate_bps, 8.0)
    rate = round(rate_bps / 8)
    ticks = min(math.ceil(burst_bytes(rate_bps) / rate * 1e9 / TICK_NS), U32)
    parameters = {
        "buffer": ticks,
        "cbuffer": ticks,
        "quantum": 60_000,  # no siblings to share with; the kernel only warns when it must guess
        "level": 0,
        "prio": 0,
    }
    for limit in ("rate", "ceil"):
        parameters |= {
            limit: min(rate, U32),
            f"{limit}_cell_log": 0,
            f"{limit}___reserved": 1,  # the link layer: Ethernet, so that no rate table is asked for
            f"{limit}_overhead": 0,
            f"{limit}_cell_align": -1,
            f"{limit}_mpu": 0,
        }
    wide = [(f"TCA_HTB_{limit}64", rate) for limit in ("RATE", "CEIL") if rate > U32]
    return {"attrs": [("TCA_HTB_PARMS", parameters), *wide]}


def _share(fraction: float) -> int:
    return round(fraction * U32)
