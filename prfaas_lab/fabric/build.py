"""Making what the address plan says: namespaces, bridges, engine links, routes, caps."""

from __future__ import annotations

from prfaas_lab.fabric import interfaces, namespaces, sysctl
from prfaas_lab.fabric.egress import cap_egress
from prfaas_lab.fabric.lan import shape_port
from prfaas_lab.fabric.netlink import Netlink
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.plan import ENGINE_INTERFACE, LAN_INTERFACE, LAN_PREFIX, Node, Plan, Site
from prfaas_lab.fabric.shape import Shaper

Direction = tuple[str, str]
"""(link, source): the packets that leave datacenter `source` over `link`."""


def build(layout: Plan, shaper: Shaper, ownership: Ownership) -> None:
    """Make everything, each thing written into the run's journal before it exists."""
    for site in layout.sites.values():
        _make_site(site, layout, shaper.name == "netem", ownership)
    for link in layout.links:
        one, other = link.ends
        shaper.attach(
            link, layout.shapes[link.name, one.datacenter], layout.shapes[link.name, other.datacenter]
        )
        _claim_process(shaper, ownership, first=link is layout.links[0])
    for name, site in layout.sites.items():
        _connect(
            site, [end.interface for link in layout.links for end in link.ends if end.datacenter == name]
        )


def _claim_process(shaper: Shaper, ownership: Ownership, *, first: bool) -> None:
    """A shaper in user space has a process, which starts with its first link."""
    pid = getattr(shaper, "pid", None)
    if first and pid is not None:
        ownership.claim_process(pid)


def demolish(layout: Plan) -> None:
    """Remove all namespaces; what is inside them goes with them."""
    for node in layout.nodes.values():
        if node.netns is not None:
            namespaces.delete(node.netns)


def _make_site(site: Site, layout: Plan, with_netem: bool, ownership: Ownership) -> None:
    """A gateway with a bridge, and its engines around it."""
    gateway = _netns(site.gateway)
    namespaces.create(ownership.claim_namespace(gateway))
    sysctl.router(gateway, layout.window_bytes)
    with Netlink(gateway) as netlink:
        interfaces.set_up(netlink, "lo")
        interfaces.add_link(netlink, LAN_INTERFACE, "bridge")
        interfaces.add_address(netlink, LAN_INTERFACE, f"{site.gateway.address}/{LAN_PREFIX}")
        interfaces.set_up(netlink, LAN_INTERFACE)
        for number, engine in enumerate(site.engines):
            namespaces.create(ownership.claim_namespace(_netns(engine)))
            sysctl.endpoint(_netns(engine), layout.window_bytes)
            _plug_in(netlink, site, engine, f"e{number}", with_netem, layout.retry_s)


def _plug_in(
    at_gateway: Netlink, site: Site, engine: Node, port: str, with_netem: bool, retry_s: float | None
) -> None:
    """The link between an engine and its gateway, shaped both ways before it is up."""
    netns = _netns(engine)
    interfaces.add_veth(at_gateway, (_netns(site.gateway), port), (netns, ENGINE_INTERFACE))
    shape_port(at_gateway, port, site.intra, with_netem=with_netem)
    interfaces.set_up(at_gateway, port, master=LAN_INTERFACE)
    with Netlink(netns) as netlink:
        interfaces.set_up(netlink, "lo")
        if with_netem:
            # netem and htb see, lose and queue what the sender hands over: whole packets, please,
            # not bundles of up to 44. (The tun shaper cuts bundles up where it matters.)
            interfaces.send_single_packets(netlink, ENGINE_INTERFACE)
        shape_port(netlink, ENGINE_INTERFACE, site.intra, with_netem=with_netem)
        interfaces.add_address(netlink, ENGINE_INTERFACE, f"{engine.address}/{LAN_PREFIX}")
        interfaces.set_up(netlink, ENGINE_INTERFACE)
        interfaces.add_route(netlink, "0.0.0.0/0", site.gateway.address, retry_s=retry_s)


def _connect(site: Site, wan_interfaces: list[str]) -> None:
    """The gateway's ways to other datacenters, and the cap on what leaves over them."""
    with Netlink(_netns(site.gateway)) as netlink:
        for route in site.routes:
            interfaces.add_route(netlink, route.network, route.via, source=site.gateway.address)
        if site.egress_bps is not None:
            cap_egress(netlink, wan_interfaces, site.egress_bps)


def _netns(node: Node) -> str:
    assert node.netns is not None, "a relayed node has no namespace to build"
    return node.netns
