"""What several tests of the lab stand on: a network that is none, and a profile that nobody measured."""

from __future__ import annotations

from prfaas_lab.router import PathView

PROFILE = """
hardware: qwen3-next-tiny
model: qwen3-next-tiny
gpus: 1
prefill: {source: a test, knots: [[64, 20ms], [2048, 400ms]]}
kvcache: {source: a test, knots: [[64, 94208B], [2048, 1110016B]]}
decode: {bs_max: 8, step: {source: a test, knots: [[1, 8ms], [8, 15ms]]}}
"""


class Loopback:
    """Everybody is at home."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports

    def data_address(self, source: str, destination: str) -> tuple[str, int]:
        return "127.0.0.1", self.ports[destination]

    def paths(self) -> tuple[PathView, ...]:
        return ()
