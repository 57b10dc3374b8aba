"""A cap on everything that leaves a datacenter, over all its links together.

The gateway's WAN interfaces hand their packets to one IFB device (clsact egress, mirred redirect),
whose htb lets them go at the cap; then each meets its own link's shaping. So it works alike whatever
shapes the links, and transit traffic counts too.
"""

from __future__ import annotations

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric import interfaces, qdisc
from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.units import format_rate

IFB_INTERFACE = "egress0"
CLSACT_EGRESS = 0xFFFFFFF3
ETH_P_ALL = 3
EVERY_PACKET = "0x0/0x0+0"


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
    netlink.call(lambda ip: ip.tc("add", "clsact", interface), "add clsact")
    redirect = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
    filtering = {"prio": 1, "protocol": ETH_P_ALL, "keys": [EVERY_PACKET], "target": 0, "action": redirect}
    netlink.call(
        lambda ip: ip.tc("add-filter", "u32", interface, parent=CLSACT_EGRESS, **filtering),
        "redirect the egress",
    )
