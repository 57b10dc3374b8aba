"""TUN devices: made inside a namespace, addressed, and read packet by packet.

Standard library only, and nothing but ioctl: the shaper's process loads this too.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.namespaces import call_in

MTU_BYTES = 1500
ETHERNET_BYTES = 14
RING_PACKETS = 10_000
"""What the device holds for us while we are not running: 0.1 s of full packets at 1 Gbit/s."""
VNET_BYTES = 10
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
READ_BYTES = VNET_BYTES + 65535

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TUN, _NO_PI, _VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUM, _TSO4, _TSO6 = 1, 2, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_UP = 0x1
_STATISTICS, _STATISTICS_BYTES, _SENT_DROPPED = "/proc/thread-self/net/dev", 65536, 11
"""The file stays that of the namespace in which it was opened. Column 11: drops on the way out."""


def open_tun(netns: str, interface: str, address: str) -> tuple[int, int]:
    """Make a TUN device in a named namespace, up and addressed: (its file descriptor, one that reads
    the namespace's interface statistics).

    The device lives as long as any copy of the first.
    """
    try:
        return call_in(netns, lambda: (_make(interface, address), os.open(_STATISTICS, os.O_RDONLY)))
    except OSError as error:
        raise FabricError(
            f"cannot make the TUN device {interface}: {error}", where=netns, remedy=_remedy(error)
        ) from error


def set_offload(device: int, *, segmentation: bool) -> None:
    """Whether the kernel hands out packets of up to 64 KiB, or cuts them to the MTU first."""
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUM | (_TSO4 | _TSO6 if segmentation else 0))


def ring_drops(statistics: int, interface: str) -> int:
    """Packets that the kernel dropped because the device's ring was full: we were too slow."""
    text = os.pread(statistics, _STATISTICS_BYTES, 0).decode()
    for line in text.splitlines():
        name, _, columns = line.strip().partition(":")
        if name == interface:
            return int(columns.split()[_SENT_DROPPED])
    return 0


def on_the_wire(packet: bytes) -> tuple[int, int]:
    """(bytes, segments) that a packet read from a device is once cut up: every segment repeats the
    IP and TCP headers and has an Ethernet header, as a kernel shaper counts it."""
    length = len(packet) - VNET_BYTES
    if not packet[1]:
        return length + ETHERNET_BYTES, 1
    segment_bytes, transport_start = struct.unpack_from("=HH", packet, 4)
    header_bytes = transport_start + (packet[VNET_BYTES + transport_start + 12] >> 4) * 4
    segments = max(1, -(-(length - header_bytes) // segment_bytes))
    return length + header_bytes * (segments - 1) + ETHERNET_BYTES * segments, segments


def _make(interface: str, address: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        name = interface.encode()
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name, _TUN | _NO_PI | _VNET_HDR))
        set_offload(device, segmentation=False)
        _configure(name, ipaddress.IPv4Interface(address))
    except BaseException:
        os.close(device)
        raise
    return device


def _configure(name: bytes, address: ipaddress.IPv4Interface) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for request, value in ((_SIOCSIFMTU, MTU_BYTES), (_SIOCSIFTXQLEN, RING_PACKETS)):
            fcntl.ioctl(control, request, struct.pack("16si20x", name, value))
        for request, ip in ((_SIOCSIFADDR, address.ip), (_SIOCSIFNETMASK, address.netmask)):
            packed = struct.pack("16sHH4s16x", name, socket.AF_INET, 0, ip.packed)
            fcntl.ioctl(control, request, packed)
        read = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh22x", name, 0))
        flags = struct.unpack_from("16sh", read)[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _UP))


def _remedy(error: OSError) -> str:
    if error.filename == "/dev/net/tun":
        return "load the tun module, or give the container /dev/net/tun (docker run --device /dev/net/tun)"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "run as root, or give the process CAP_NET_ADMIN and CAP_SYS_ADMIN"
    if error.errno == errno.EBUSY:
        return "another process holds a device of that name: end it"
    return "`prfaas-lab doctor` says what this kernel can do"
