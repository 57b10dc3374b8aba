"""Kernel settings of a namespace, written from inside it."""

from __future__ import annotations

from pathlib import Path

from prfaas_lab.fabric.namespaces import call_in

_NET = Path("/proc/sys/net")
CONGESTION_CONTROL = ("bbr", "cubic", "reno")
"""Best first: BBR neither fills a long queue nor halves at a single loss."""


def endpoint(netns: str, window_bytes: int) -> None:
    """Settings of a namespace whose sockets must fill long paths."""
    call_in(netns, lambda: _write(_quiet() | _tcp(window_bytes)))


def router(netns: str, window_bytes: int) -> None:
    """Settings of a gateway: forwards, and accepts that the way back may be another."""
    forwarding = {
        "ipv4/ip_forward": "1",
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        "ipv4/conf/all/send_redirects": "0",
        "ipv4/conf/default/send_redirects": "0",
    }
    call_in(netns, lambda: _write(_quiet() | forwarding | _tcp(window_bytes)))


def congestion_control() -> str:
    """The congestion control that new connections of the emulated network get."""
    available = _read("ipv4/tcp_available_congestion_control").split()
    return next((name for name in CONGESTION_CONTROL if name in available), "cubic")


def _tcp(window_bytes: int) -> dict[str, str]:
    return {
        "ipv4/tcp_congestion_control": congestion_control(),
        "ipv4/tcp_wmem": f"4096 65536 {window_bytes}",
        "ipv4/tcp_rmem": f"4096 131072 {window_bytes}",
        "ipv4/tcp_no_metrics_save": "1",  # a run must not learn from the one before
        "ipv4/tcp_slow_start_after_idle": "0",
    }


def _quiet() -> dict[str, str]:
    # No IPv6 neighbour discovery on the emulated links: only what the run sends is counted.
    return {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}


def _write(settings: dict[str, str]) -> None:
    for name, value in settings.items():
        path = _NET / name
        if path.exists():  # a kernel without IPv6 has nothing to quieten
            path.write_text(value)


def _read(name: str) -> str:
    return (_NET / name).read_text()
