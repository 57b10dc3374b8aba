"""Interfaces, addresses and routes: what `ip link`, `ip addr` and `ip route` do."""

from __future__ import annotations

import ipaddress
import socket
import struct

from prfaas_lab.fabric.namespaces import open_netns
from prfaas_lab.fabric.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, nested

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_NEWROUTE = 20, 24
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD, IFLA_GSO_MAX_SEGS = 3, 10, 18, 28, 40
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 5, 7, 15
IFF_UP = 1
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1
_NEW = NLM_F_CREATE | NLM_F_EXCL


def add_veth(netlink: Netlink, one: tuple[str, str], other: tuple[str, str]) -> None:
    """A veth pair whose ends, (namespace, interface), are made straight inside their namespaces."""
    with open_netns(one[0]) as one_fd, open_netns(other[0]) as other_fd:
        peer = _link_header() + attribute(IFLA_IFNAME, other[1]) + attribute(IFLA_NET_NS_FD, other_fd)
        body = (
            _link_header()
            + attribute(IFLA_IFNAME, one[1])
            + attribute(IFLA_NET_NS_FD, one_fd)
            + nested(
                IFLA_LINKINFO,
                attribute(IFLA_INFO_KIND, "veth"),
                nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer)),
            )
        )
        netlink.request(RTM_NEWLINK, _NEW, body, f"make veth {one[1]} in {one[0]}, {other[1]} in {other[0]}")


def add_link(netlink: Netlink, name: str, kind: str) -> None:
    """An interface of a kind that needs no more said: bridge, dummy, ifb."""
    info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind))
    netlink.request(
        RTM_NEWLINK, _NEW, _link_header() + attribute(IFLA_IFNAME, name) + info, f"make {kind} {name}"
    )


def set_up(netlink: Netlink, name: str, *, master: str | None = None) -> None:
    """Bring an interface up, enslaved to a bridge when given one."""
    body = _link_header(index_of(netlink, name), IFF_UP, IFF_UP)
    if master is not None:
        body += attribute(IFLA_MASTER, index_of(netlink, master))
    netlink.request(RTM_NEWLINK, 0, body, f"bring {name} up")


def send_single_packets(netlink: Netlink, name: str) -> None:
    """No segmentation offload for connections that leave by this interface."""
    body = _link_header(index_of(netlink, name)) + attribute(IFLA_GSO_MAX_SEGS, 1)
    netlink.request(RTM_NEWLINK, 0, body, f"turn off segmentation offload of {name}")


def index_of(netlink: Netlink, name: str) -> int:
    """The kernel's number of an interface."""
    if name == "lo":
        return 1
    reply = netlink.request(RTM_GETLINK, 0, _link_header() + attribute(IFLA_IFNAME, name), f"look up {name}")
    return int(struct.unpack_from("=i", reply[0], 4)[0])


def add_address(netlink: Netlink, name: str, address: str) -> None:
    """An IPv4 address with its prefix length, `10.64.0.1/16`."""
    parsed = ipaddress.IPv4Interface(address)
    header = struct.pack("=BBBBI", socket.AF_INET, parsed.network.prefixlen, 0, 0, index_of(netlink, name))
    body = header + attribute(IFA_LOCAL, parsed.ip.packed) + attribute(IFA_ADDRESS, parsed.ip.packed)
    netlink.request(RTM_NEWADDR, _NEW, body, f"give {name} the address {address}")


def add_route(netlink: Netlink, network: str, via: str, *, source: str | None = None) -> None:
    """A static route; `0.0.0.0/0` is the default one. `source` is the address our own packets bear."""
    target = ipaddress.IPv4Network(network)
    header = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, target.prefixlen, 0, 0,
        RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0,
    )  # fmt: skip
    body = header + attribute(RTA_GATEWAY, ipaddress.IPv4Address(via).packed)
    if target.prefixlen:
        body += attribute(RTA_DST, target.network_address.packed)
    if source is not None:
        body += attribute(RTA_PREFSRC, ipaddress.IPv4Address(source).packed)
    netlink.request(RTM_NEWROUTE, _NEW, body, f"route {network} via {via}")


def _link_header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)
