"""The `netem` shaper: the kernel's own emulation, on a veth pair between two gateways.

Each end's egress is netem (delay, jitter, loss, reordering, duplication, corruption) with an htb class
below it (rate, and the queue limit in bytes). Measured in the guest at 40 Mbit/s and 60 offered, with a
step to 20: all ways to set a rate reach the achievable goodput within 1 %, but netem's own rate still
let 40 through for 300 ms (it fixes a packet's departure on arrival, and limits its queue by packets);
tbf carried 21.0 where 20 was set anew every 50 ms (each change refills its bucket). htb carried 20 from
the first 100 ms on, and 20.04.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from dataclasses import dataclass, field

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import interfaces, qdisc
from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.shape import Counters, LinkEnds, Shape
from prfaas_lab.units import format_rate

NETEM, HTB, HTB_CLASS = 0x10000, 0x20000, 0x20001
FIFOS = (0x30000, 0x40000)
UNLIMITED_BYTES = 64 * 2**20
"""The queue limit where the spec gives neither rate nor queue."""


@dataclass(slots=True)
class EgressQueue:
    """The shaped egress of one interface."""

    netlink: Netlink
    interface: int
    fifo: int = 0
    shape: Shape = field(default_factory=Shape)


class NetemShaper:
    """Every link is a veth pair; both ends are shaped by the kernel."""

    name = "netem"
    pid = None
    """The kernel carries the packets."""

    def __init__(self) -> None:
        self._netlinks: dict[str, Netlink] = {}
        self._directions: dict[tuple[str, str], EgressQueue] = {}
        self._changing = threading.Lock()

    def check(self, shape: Shape) -> None:
        """Raises FabricError when the kernel cannot do what the shape asks."""
        if shape.rate_bps is not None and shape.rate_bps > qdisc.UNSHAPED_BPS:
            raise FabricError(
                f"no kernel on one machine sends {format_rate(shape.rate_bps)}",
                remedy="set a smaller scale, 0.001 turns 100Gbit into 100Mbit",
            )

    def attach(self, link: LinkEnds, forward: Shape, backward: Shape) -> None:
        """Make the pair, shape both ends, then bring them up: no packet passes unshaped."""
        self.check(forward)
        self.check(backward)
        one, other = link.ends
        here = self._netlink(one.netns)
        interfaces.add_veth(here, (one.netns, one.interface), (other.netns, other.interface))
        for end, shape in zip(link.ends, (forward, backward), strict=True):
            netlink = self._netlink(end.netns)
            direction = EgressQueue(netlink, interfaces.index_of(netlink, end.interface))
            self._directions[link.name, end.datacenter] = direction
            make(direction, shape)
            interfaces.send_single_packets(netlink, end.interface)
            interfaces.add_address(netlink, end.interface, end.address)
            interfaces.set_up(netlink, end.interface)

    def change(self, link: str, source: str, shape: Shape) -> float:
        """One in-place change of one direction; the monotonic time at which it took effect.

        What is queued drains at the new rate; what flies keeps its delay. A rate of 0 is an outage:
        the queue is dropped and nothing enters, only what already flies still lands.
        """
        self.check(shape)
        with self._changing:
            direction = self._find(link, source)
            _change(direction, shape)
            return time.monotonic()

    def counters(self, link: str, source: str) -> Counters:
        """Totals of one direction since `attach`, from the qdisc's statistics."""
        direction = self._find(link, source)
        return qdisc.queue_stats(direction.netlink, direction.interface, NETEM)

    def close(self) -> None:
        """Let go of the namespaces; the links go with them."""
        for netlink in self._netlinks.values():
            netlink.close()
        self._netlinks.clear()
        self._directions.clear()

    def _netlink(self, netns: str) -> Netlink:
        if netns not in self._netlinks:
            self._netlinks[netns] = Netlink(netns)
        return self._netlinks[netns]

    def _find(self, link: str, source: str) -> EgressQueue:
        with contextlib.suppress(KeyError):
            return self._directions[link, source]
        raise FabricError(f"there is no link {link!r} with source {source!r}", where="netem shaper")


def make(direction: EgressQueue, shape: Shape) -> None:
    """Shape an interface's egress: netem, below it htb, below it the queue."""
    netlink, interface = direction.netlink, direction.interface
    qdisc.add_netem(netlink, interface, NETEM, _passing(shape))
    qdisc.add_htb(netlink, interface, HTB, parent=NETEM | 1)
    qdisc.set_htb_rate(netlink, interface, HTB, shape.rate_bps or None, new=True)
    qdisc.graft_bfifo(netlink, interface, FIFOS[0], HTB_CLASS, _limit_bytes(shape))
    direction.shape = shape


def _change(direction: EgressQueue, shape: Shape) -> None:
    """Touch only what differs, so that a change of rate is one request."""
    steps = [_change_netem, _change_queue]
    if direction.shape.rate_bps == 0:
        steps.reverse()  # an outage ends with the last request, when all else is as it should be
    for step in steps:
        step(direction, shape)
    direction.shape = shape


def _change_netem(direction: EgressQueue, shape: Shape) -> None:
    if _passing(shape) != _passing(direction.shape):
        qdisc.change_netem(direction.netlink, direction.interface, NETEM, _passing(shape))


def _change_queue(direction: EgressQueue, shape: Shape) -> None:
    netlink, interface, old = direction.netlink, direction.interface, direction.shape
    if shape.rate_bps != old.rate_bps and shape.rate_bps != 0:
        qdisc.set_htb_rate(netlink, interface, HTB, shape.rate_bps, new=False)
    if shape.rate_bps == 0 and old.rate_bps != 0:
        direction.fifo = 1 - direction.fifo  # a fresh queue: what waited is lost
        qdisc.graft_bfifo(netlink, interface, FIFOS[direction.fifo], HTB_CLASS, _limit_bytes(shape))
    elif _limit_bytes(shape) != _limit_bytes(old):
        qdisc.graft_bfifo(netlink, interface, FIFOS[direction.fifo], HTB_CLASS, _limit_bytes(shape))


def _passing(shape: Shape) -> Shape:
    """What netem is told: everything but rate and queue; in an outage it loses every packet."""
    lost = 1.0 if shape.rate_bps == 0 else shape.loss
    return dataclasses.replace(shape, rate_bps=None, queue_bytes=None, loss=lost)


def _limit_bytes(shape: Shape) -> int:
    return shape.limit_bytes or UNLIMITED_BYTES
