"""Shaping inside a datacenter: the link between an engine and its gateway, both ways."""

from __future__ import annotations

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import interfaces, qdisc
from prfaas_lab.fabric.netem import EgressQueue, make
from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.shape import Shape

PERFECT = Shape()


def check_intra(datacenter: str, shape: Shape, shaper: str) -> None:
    """Raises FabricError when engine links cannot be shaped so. Under netem all can; without it the
    kernel still has rates (htb), but nothing that delays or loses."""
    if shape == PERFECT or shaper == "netem":
        return
    where = f"datacenters.{datacenter}.intra"
    if shaper == "relay":
        raise FabricError("the relay shaper has no engine links to shape", where=where, remedy="drop intra:")
    only_rate = Shape(rate_bps=shape.rate_bps, queue_bytes=shape.queue_bytes)
    if shape != only_rate or not shape.rate_bps:
        raise FabricError(
            "without netem, only a rate (above 0) can be given to engine links",
            where=where,
            remedy="keep rate: alone, or use a kernel with netem (`vagrant up`)",
        )


def shape_port(netlink: Netlink, interface: str, shape: Shape, *, with_netem: bool) -> None:
    """Shape what leaves one end of an engine's link."""
    if shape == PERFECT:
        return
    index = interfaces.index_of(netlink, interface)
    if with_netem:
        make(EgressQueue(netlink, index), shape)
    else:
        assert shape.rate_bps is not None
        assert shape.limit_bytes is not None
        qdisc.add_rate(netlink, index, shape.rate_bps, shape.limit_bytes)
