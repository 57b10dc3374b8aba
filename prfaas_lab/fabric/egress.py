"""A cap on everything that leaves a datacenter, over all its links together.

The gateway's WAN interfaces hand their packets to one IFB device (clsact egress, mirred redirect),
whose htb lets them go at the cap; then each meets its own link's shaping. So it works alike whatever
shapes the links, and transit traffic counts too.
"""

from __future__ import annotations

import socket
import struct

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import interfaces, qdisc
from prfaas_lab.fabric.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, nested
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.units import format_rate

IFB_INTERFACE = "egress0"
RTM_NEWTFILTER = 44
CLSACT_PARENT, CLSACT_HANDLE, CLSACT_EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF3
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_MIRRED_PARMS = 1, 2, 2
TC_ACT_STOLEN, TCA_EGRESS_REDIR = 4, 1
ETH_P_ALL = 3
_NEW = NLM_F_CREATE | NLM_F_EXCL


def check_egress(datacenter: str, rate_bps: float | None, shaper: str) -> None:
    """Raises FabricError when a cap cannot be kept."""
    where = f"datacenters.{datacenter}.egress"
    if rate_bps is not None and shaper == "relay":
        raise FabricError("the relay shaper cannot cap a sum of links", where=where, remedy="drop egress:")
    if rate_bps is not None and not 0 < rate_bps <= qdisc.UNSHAPED_BPS:
        raise FabricError(f"cannot cap at {format_rate(rate_bps)}", where=where, remedy="set a smaller scale")


def cap_egress(netlink: Netlink, wan_interfaces: list[str], rate_bps: float) -> None:
    """Cap the sum of what leaves these interfaces. Raises FabricError where the kernel cannot."""
    try:
        interfaces.add_link(netlink, IFB_INTERFACE, "ifb")
        ifb = interfaces.index_of(netlink, IFB_INTERFACE)
        limit_bytes = Shape(rate_bps=rate_bps).limit_bytes or 0
        qdisc.add_rate(netlink, ifb, rate_bps, limit_bytes)
        interfaces.set_up(netlink, IFB_INTERFACE)
        for name in wan_interfaces:
            _redirect(netlink, interfaces.index_of(netlink, name), ifb)
    except FabricError as error:
        raise FabricError(
            f"this kernel cannot cap a datacenter's egress: {error}",
            remedy="drop egress:, or use a kernel with ifb, clsact, cls_u32 and act_mirred (`vagrant up`)",
        ) from error


def _redirect(netlink: Netlink, interface: int, target: int) -> None:
    """Every packet that leaves an interface takes the way through another first."""
    body = qdisc.tc_message(interface, CLSACT_HANDLE, CLSACT_PARENT, "clsact", b"")
    netlink.request(qdisc.RTM_NEWQDISC, _NEW, body, "add clsact")
    everything = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    redirect = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, target)
    action = nested(
        1,
        attribute(TCA_ACT_KIND, "mirred"),
        nested(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, redirect)),
    )
    options = nested(qdisc.TCA_OPTIONS, attribute(TCA_U32_SEL, everything), nested(TCA_U32_ACT, action))
    priority_and_protocol = 1 << 16 | socket.htons(ETH_P_ALL)
    body = qdisc.tc_message(interface, 0, CLSACT_EGRESS, "u32", options, info=priority_and_protocol)
    netlink.request(RTM_NEWTFILTER, _NEW, body, "redirect the egress")
