"""Queueing disciplines: what `tc qdisc` and `tc class` do, and their statistics.

Layouts are those of linux/pkt_sched.h.
"""

from __future__ import annotations

import functools
import math
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from prfaas_lab.fabric.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
    nested,
)
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.spec.topology import GilbertElliott

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTCLASS = 36, 38, 40
TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 3
NETEM_CORR, NETEM_DIST, NETEM_REORDER, NETEM_CORRUPT, NETEM_LOSS, NETEM_RATE = 1, 2, 3, 4, 5, 6
NETEM_RATE64, NETEM_LATENCY64, NETEM_JITTER64, NETEM_LOSS_GE = 8, 10, 11, 2
HTB_PARMS, HTB_INIT, HTB_RATE64, HTB_CEIL64 = 1, 2, 6, 7
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
_NEW, _GRAFT = NLM_F_CREATE | NLM_F_EXCL, NLM_F_CREATE | NLM_F_REPLACE


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """What one qdisc says of itself."""

    interface: int
    handle: int
    kind: str
    bytes_total: int
    packets_total: int
    dropped_total: int
    backlog_bytes: int


def add_netem(netlink: Netlink, interface: int, handle: int, shape: Shape, *, parent: int = ROOT) -> None:
    """Delay, jitter, loss, reordering, duplication and corruption of a shape; not its rate."""
    body = tc_message(interface, handle, parent, "netem", attribute(TCA_OPTIONS, _netem(shape)))
    netlink.request(RTM_NEWQDISC, _NEW, body, "add netem")


def change_netem(netlink: Netlink, interface: int, handle: int, shape: Shape, *, parent: int = ROOT) -> None:
    """The same in place: what it holds stays where it is."""
    body = tc_message(interface, handle, parent, "netem", attribute(TCA_OPTIONS, _netem(shape)))
    netlink.request(RTM_NEWQDISC, 0, body, "change netem")


def add_htb(netlink: Netlink, interface: int, handle: int, *, parent: int = ROOT) -> None:
    """A token-bucket tree whose class `handle + 1` takes all packets."""
    init = attribute(HTB_INIT, struct.pack("=IIIII", 3, 10, 1, 0, 0))
    body = tc_message(interface, handle, parent, "htb", nested(TCA_OPTIONS, init))
    netlink.request(RTM_NEWQDISC, _NEW, body, "add htb")


def set_htb_rate(netlink: Netlink, interface: int, handle: int, rate_bps: float | None, *, new: bool) -> None:
    """The rate of the class `handle + 1`. Its tokens stay as they are: a change frees no burst."""
    body = tc_message(interface, handle | 1, handle, "htb", nested(TCA_OPTIONS, _htb_class(rate_bps)))
    netlink.request(RTM_NEWTCLASS, _NEW if new else 0, body, "set the htb rate")


def graft_bfifo(netlink: Netlink, interface: int, handle: int, parent: int, limit_bytes: int) -> None:
    """A drop-tail queue of so many bytes; one with another handle takes the place of the old, whose
    packets are lost, one with the same handle only changes its limit."""
    options = attribute(TCA_OPTIONS, struct.pack("=I", min(limit_bytes, U32)))
    body = tc_message(interface, handle, parent, "bfifo", options)
    netlink.request(RTM_NEWQDISC, _GRAFT, body, "set the queue limit")


def add_rate(netlink: Netlink, interface: int, rate_bps: float, limit_bytes: int) -> None:
    """Nothing but a rate and a queue limit, at an interface's root."""
    add_htb(netlink, interface, 0x20000)
    set_htb_rate(netlink, interface, 0x20000, rate_bps, new=True)
    graft_bfifo(netlink, interface, 0x30000, 0x20001, limit_bytes)


def queue_stats(netlink: Netlink) -> Iterator[QueueStats]:
    """Every qdisc of the namespace, in one question."""
    for body in netlink.request(RTM_GETQDISC, NLM_F_DUMP, _header(0, 0, 0), "read the queues"):
        _, interface, handle, _, _ = struct.unpack_from("=B3xiIII", body)
        found = attributes(body, 20)
        stats = attributes(found.get(TCA_STATS2, b""))
        if TCA_STATS_BASIC not in stats or TCA_STATS_QUEUE not in stats:
            continue
        carried, packets = struct.unpack_from("=QI", stats[TCA_STATS_BASIC])
        _, backlog, drops = struct.unpack_from("=III", stats[TCA_STATS_QUEUE])
        yield QueueStats(
            interface=interface,
            handle=handle,
            kind=found[TCA_KIND].rstrip(b"\0").decode(),
            bytes_total=carried,
            packets_total=packets,
            dropped_total=drops,
            backlog_bytes=backlog,
        )


def burst_bytes(rate_bps: float) -> int:
    """What may leave at once: 4 ms of the rate bridges a late timer, and two full frames at least."""
    return max(math.ceil(rate_bps / 8 / 250), 2 * 1514)


def _netem(shape: Shape) -> bytes:
    """netem's options, every one of them, because a change keeps what it does not name."""
    lost = shape.loss if isinstance(shape.loss, float | int) else 0.0
    fixed = struct.pack(
        "=IIIIII", 0, NETEM_LIMIT_PACKETS, _share(lost), 1 if shape.reorder else 0,
        _share(shape.duplicate), 0,
    )  # fmt: skip
    # With a rate, however high, netem keeps packets in order under jitter, as a queue on a real path
    # does. Reordering is asked for by its own name.
    in_order_bps = int(100e9 / 8) if shape.jitter_s else 0
    options = [
        attribute(NETEM_LATENCY64, struct.pack("=q", round(shape.delay_s * 1e9))),
        attribute(NETEM_JITTER64, struct.pack("=q", round(shape.jitter_s * 1e9))),
        attribute(NETEM_CORR, struct.pack("=III", _share(shape.delay_correlation), 0, 0)),
        attribute(NETEM_REORDER, struct.pack("=II", _share(shape.reorder), 0)),
        attribute(NETEM_CORRUPT, struct.pack("=II", _share(shape.corrupt), 0)),
        attribute(NETEM_RATE, struct.pack("=IiIi", min(in_order_bps, U32), 0, 0, 0)),
        attribute(NETEM_RATE64, struct.pack("=Q", in_order_bps)),
        attribute(NETEM_DIST, _distribution(shape.distribution)),
    ]
    if isinstance(shape.loss, GilbertElliott):
        model = shape.loss
        odds = (model.p, model.r, 1 - model.loss_bad, model.loss_good)
        gilbert_elliott = struct.pack("=IIII", *map(_share, odds))
        options.append(nested(NETEM_LOSS, attribute(NETEM_LOSS_GE, gilbert_elliott)))
    return fixed + b"".join(options)


@functools.cache
def _distribution(name: str) -> bytes:
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
    return struct.pack(f"={size}h", *(min(max(value, -32768), 32767) for value in scaled))


def _htb_class(rate_bps: float | None) -> bytes:
    rate_bps = UNSHAPED_BPS if rate_bps is None else max(rate_bps, 8.0)
    rate = round(rate_bps / 8)
    ticks = min(math.ceil(burst_bytes(rate_bps) / rate * 1e9 / TICK_NS), U32)
    spec = struct.pack("=BBHhHI", 0, 1, 0, -1, 0, min(rate, U32))  # linklayer 1: Ethernet, no rate table
    quantum = 60_000  # no siblings to share with; the kernel only warns when it must guess
    parameters = spec + spec + struct.pack("=IIIII", ticks, ticks, quantum, 0, 0)
    wide = b"".join(attribute(kind, struct.pack("=Q", rate)) for kind in (HTB_RATE64, HTB_CEIL64))
    return attribute(HTB_PARMS, parameters) + (wide if rate > U32 else b"")


def _share(fraction: float) -> int:
    return round(fraction * U32)


def tc_message(
    interface: int, handle: int, parent: int, kind: str, options: bytes, *, info: int = 0
) -> bytes:
    """The body of a request about a qdisc, class or filter; `options` is an attribute."""
    return _header(interface, handle, parent, info) + attribute(TCA_KIND, kind) + options


def _header(interface: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=B3xiIII", socket.AF_UNSPEC, interface, handle, parent, info)
