"""What this machine can do, found by trying, and which shaper that allows."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prfaas_lab.errors import FabricError, UsageError
from prfaas_lab.fabric import interfaces, namespaces, qdisc
from prfaas_lab.fabric.egress import cap_egress
from prfaas_lab.fabric.netlink import Netlink, NetlinkError
from prfaas_lab.fabric.ownership import Ownership
from prfaas_lab.fabric.shape import Shape

SHAPERS = ("netem", "tun", "relay")
"""Best first."""
REMEDY = "`vagrant up` gives a kernel with everything; `prfaas-lab doctor` says what is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was tried, and why it failed (an empty text: it works)."""

    root: bool
    netns: str
    veth: str
    bridge: str
    netem: str
    htb: str
    egress: str
    tun: str

    def missing(self, shaper: str) -> str:
        """Why a shaper cannot be used here; empty when it can."""
        needs = {
            "netem": (self.netns, self.veth, self.bridge, self.netem, self.htb),
            "tun": (self.netns, self.veth, self.bridge, self.tun),
            "relay": (),
        }
        return "; ".join(filter(None, needs[shaper]))


def probe() -> Probe:
    """Try everything in a throwaway namespace, which is gone afterwards."""
    root = os.geteuid() == 0
    try:
        with _throwaway() as netns, Netlink(netns) as netlink:
            return Probe(
                root=root,
                netns="",
                veth=_trouble(lambda: _try_veth(netlink, netns)),
                bridge=_trouble(lambda: interfaces.add_link(netlink, "b0", "bridge")),
                netem=_trouble(lambda: _try_netem(netlink)),
                htb=_trouble(lambda: _try_htb(netlink)),
                egress=_trouble(lambda: cap_egress(netlink, ["v0"], 1e6)),
                tun=_trouble(lambda: namespaces.call_in(netns, _try_tun)),
            )
    except (FabricError, OSError) as error:
        no = f"no network namespaces ({error})"
        return Probe(root=root, netns=no, veth=no, bridge=no, netem=no, htb=no, egress=no, tun=no)


def choose_shaper(found: Probe, wanted: str = "auto") -> tuple[str, str]:
    """(shaper, reason in words). Raises FabricError when the wanted one cannot be had."""
    if wanted != "auto":
        if wanted not in SHAPERS:
            raise UsageError(f"there is no shaper {wanted!r}", remedy=f"use auto, {', '.join(SHAPERS)}")
        if trouble := found.missing(wanted):
            raise FabricError(f"the {wanted} shaper cannot be used: {trouble}", remedy=REMEDY)
        return wanted, "as asked"
    best = next(shaper for shaper in SHAPERS if not found.missing(shaper))
    passed_over = [f"no {name}: {found.missing(name)}" for name in SHAPERS[: SHAPERS.index(best)]]
    return best, "; ".join(passed_over) or "the kernel has all of it"


@contextlib.contextmanager
def _throwaway() -> Iterator[str]:
    """Written down as what a run makes is, so that `clean` finds it should we be killed meanwhile."""
    ownership = Ownership(f"probe-{secrets.token_hex(4)}")
    try:
        name = ownership.claim_namespace(f"pl-{ownership.run_id}")
        namespaces.create(name)
        yield name
    finally:
        ownership.release()


def _trouble(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (FabricError, OSError) as error:
        return str(error)
    return ""


def _try_veth(netlink: Netlink, netns: str) -> None:
    interfaces.add_veth(netlink, (netns, "v0"), (netns, "v1"))


def _try_netem(netlink: Netlink) -> None:
    try:
        qdisc.add_netem(netlink, interfaces.index_of(netlink, "v0"), 0x10000, Shape(delay_s=0.001))
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            raise FabricError("this kernel has no sch_netem") from error
        raise


def _try_htb(netlink: Netlink) -> None:
    interface = interfaces.index_of(netlink, "v1")
    qdisc.add_htb(netlink, interface, 0x10000)
    qdisc.set_htb_rate(netlink, interface, 0x10000, 1e6, new=True)
    qdisc.graft_bfifo(netlink, interface, 0x20000, 0x10001, 65536)


def _try_tun() -> None:
    import fcntl
    import struct

    device = Path("/dev/net/tun")
    try:
        with device.open("r+b", buffering=0) as tun:
            fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"t0", 0x1001))  # TUNSETIFF: TUN, NO_PI
    except OSError as error:
        raise OSError(f"{device}: {error.strerror}") from error
