"""Interfaces, addresses and routes: what `ip link`, `ip addr` and `ip route` do."""

from __future__ import annotations

import math
from typing import Any

from prfaas_lab.fabric.namespaces import open_netns
from prfaas_lab.fabric.netlink import Netlink

_RTAX_RTO_MIN = 13
"""linux/rtnetlink.h: the metric, and its bit among those that TCP must not change."""


def add_veth(netlink: Netlink, one: tuple[str, str], other: tuple[str, str]) -> None:
    """A veth pair whose ends, (namespace, interface), are made straight inside their namespaces."""
    with open_netns(one[0]) as one_fd, open_netns(other[0]) as other_fd:
        peer = {"ifname": other[1], "net_ns_fd": other_fd}
        netlink.call(
            lambda ip: ip.link("add", ifname=one[1], kind="veth", net_ns_fd=one_fd, peer=peer),
            f"make veth {one[1]} in {one[0]}, {other[1]} in {other[0]}",
        )


def add_link(netlink: Netlink, name: str, kind: str) -> None:
    """An interface of a kind that needs no more said: bridge, dummy, ifb."""
    netlink.call(lambda ip: ip.link("add", ifname=name, kind=kind), f"make {kind} {name}")


def set_up(netlink: Netlink, name: str, *, master: str | None = None) -> None:
    """Bring an interface up, enslaved to a bridge when given one."""
    wanted = {"index": index_of(netlink, name), "state": "up"}
    if master is not None:
        wanted["master"] = index_of(netlink, master)
    netlink.call(lambda ip: ip.link("set", **wanted), f"bring {name} up")


def send_single_packets(netlink: Netlink, name: str) -> None:
    """No segmentation offload for connections that leave by this interface."""
    index = index_of(netlink, name)
    netlink.call(
        lambda ip: ip.link("set", index=index, gso_max_segs=1), f"turn off segmentation offload of {name}"
    )


def index_of(netlink: Netlink, name: str) -> int:
    """The kernel's number of an interface."""
    from pyroute2.netlink.rtnl import RTM_GETLINK
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    if name == "lo":
        return 1
    question = ifinfmsg().setvalue({"attrs": [("IFLA_IFNAME", name)]})
    return int(netlink.read(question, RTM_GETLINK, f"look up {name}")["index"])


def add_address(netlink: Netlink, name: str, address: str) -> None:
    """An IPv4 address with its prefix length, `10.64.0.1/16`."""
    index = index_of(netlink, name)
    netlink.call(
        lambda ip: ip.addr("add", index=index, address=address), f"give {name} the address {address}"
    )


def add_route(
    netlink: Netlink, network: str, via: str, *, source: str | None = None, retry_s: float | None = None
) -> None:
    """A static route; `0.0.0.0/0` is the default one. `source` is the address our own packets bear,
    `retry_s` the least of TCP's retransmission timeouts (the kernel's own is 200 ms)."""
    wanted: dict[str, Any] = {"dst": network, "gateway": via}
    if retry_s is not None:
        wanted["metrics"] = {"lock": 1 << _RTAX_RTO_MIN, "rto_min": math.ceil(retry_s * 1000)}
    if source is not None:
        wanted["prefsrc"] = source
    netlink.call(lambda ip: ip.route("add", **wanted), f"route {network} via {via}")
