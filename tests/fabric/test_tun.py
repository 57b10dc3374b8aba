"""What the tun shaper decides before any device is made."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import pytest

from prfaas_lab.errors import FabricError
from prfaas_lab.fabric.shape import Shape
from prfaas_lab.fabric.tun import TunShaper, conditions, offloads
from prfaas_lab.fabric.tun_device import on_the_wire
from prfaas_lab.spec.topology import GilbertElliott


@pytest.mark.parametrize("what", ["reorder", "duplicate", "corrupt"])
def test_what_needs_netem_is_refused_with_a_way_out(what: str) -> None:
    asked: dict[str, Any] = {what: 0.01}
    with pytest.raises(FabricError, match=f"cannot {what} packets") as caught:
        TunShaper().check(Shape(**asked))
    assert "netem" in str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(rate_bps=1e9, loss=0.001),
        Shape(rate_bps=1e9, loss=GilbertElliott(p=0.01, r=0.5)),
        Shape(rate_bps=5e6),
        Shape(rate_bps=1e9, queue_bytes=100_000),
    ],
)
def test_bundles_of_segments_are_cut_where_they_would_show(shape: Shape) -> None:
    assert not offloads(shape)


def test_bundles_are_let_through_where_they_are_short() -> None:
    assert offloads(Shape(rate_bps=1e9, delay_s=0.025))
    assert offloads(Shape())


def test_random_loss_is_the_chain_that_stays_in_its_good_state() -> None:
    assert conditions(Shape(loss=0.02)).loss_good == 0.02
    chain = conditions(Shape(loss=GilbertElliott(p=0.1, r=0.4)))
    assert (chain.good_to_bad, chain.bad_to_good, chain.loss_good, chain.loss_bad) == (0.1, 0.4, 0.0, 1.0)


def bundle(payload_bytes: int, *, segment_bytes: int) -> bytes:
    """A TCP packet as a TUN device hands it out: 20 bytes of IP, 32 of TCP with timestamps."""
    kind = 1 if payload_bytes > segment_bytes else 0
    vnet = struct.pack("=BBHHHH", 1, kind, 52, segment_bytes if kind else 0, 20, 16)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return vnet + bytes(20) + tcp + bytes(payload_bytes)


@pytest.mark.parametrize("payload_bytes", [1, 1448, 1449, 14480, 65000])
def test_a_bundle_counts_the_headers_of_all_its_segments(payload_bytes: int) -> None:
    segments = -(-payload_bytes // 1448)
    expected = payload_bytes + segments * (20 + 32 + 14)
    assert on_the_wire(bundle(payload_bytes, segment_bytes=1448)) == (expected, segments)


@pytest.mark.parametrize("module", ["tun_process", "relay_process", "cross_traffic_process"])
def test_the_processes_load_nothing_heavy(module: str) -> None:
    heavy = "{'pydantic', 'numpy', 'torch', 'yaml', 'pyroute2', 'asyncio'} & set(sys.modules)"
    program = f"import sys, prfaas_lab.fabric.{module}; print({heavy} or 'light')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "light"
