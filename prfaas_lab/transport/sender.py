"""The prefill engine's end: opens transfers to decode engines over pooled connections."""

from __future__ import annotations

from collections.abc import Callable

from prfaas_lab.transport.codec import Codec
from prfaas_lab.transport.congestion import PathSample
from prfaas_lab.transport.dial import Peer, Terms
from prfaas_lab.transport.encoding import Encoder
from prfaas_lab.transport.frames import MAX_CONTROL_BYTES
from prfaas_lab.transport.limits import Limits
from prfaas_lab.transport.outgoing import Outgoing
from prfaas_lab.transport.route import Route


class KVSender:
    """Sends KVCache to any number of receivers of the same run and layout.

    `key` is the run's secret, `fingerprint` the 32 bytes of the cache layout, `codec` what both ends
    compress with, `clock` what the times in `Sent` are read from.
    """

    def __init__(
        self, *, key: bytes, fingerprint: bytes, settings: Limits | None = None,
        codec: Codec | None = None, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._terms = Terms(key=key, fingerprint=fingerprint, codec=codec)
        self._encoder = None if codec is None else Encoder(codec)
        self._clock = clock
        self._settings = settings or Limits()
        self.routes: dict[Peer, Route] = {}

    async def open(
        self,
        transfer_id: str,
        peer: Peer,
        *,
        weight: float = 1.0,
        expected_bytes: int | None = None,
        exact: bool = False,
    ) -> Outgoing:
        """Begin a transfer that `peer` expects under this id; dials on first use.

        `weight` counts under the policy `weighted`, `expected_bytes` under `shortest`; `exact` sends
        as it is what a lossy codec would alter. Raises PeerLost when the peer cannot be reached,
        KeyMismatch, LayoutMismatch or CompressionMismatch when it is the wrong one. That a transfer is
        not expected shows on the next `send`, or in `finish`.
        """
        if not 0 < len(transfer_id.encode()) <= MAX_CONTROL_BYTES:
            raise ValueError(f"a transfer id has 1 to {MAX_CONTROL_BYTES} bytes")
        if weight <= 0:
            raise ValueError(f"a weight is more than zero, not {weight}")
        route = self.routes.get(peer)
        if route is None:
            route = self.routes[peer] = Route(peer, self._terms, self._encoder, self._settings, self._clock)
        return await route.open(transfer_id, weight=weight, expected_bytes=expected_bytes, exact=exact)

    def paths(self) -> dict[Peer, PathSample]:
        """The latest sample of the path to each peer, at most `sample_interval_s` old."""
        return {peer: route.path for peer, route in self.routes.items() if route.path is not None}

    async def close(self) -> None:
        """Transfers that are still open fail with TransferCancelled."""
        for route in self.routes.values():
            await route.close()
        self.routes.clear()
        if self._encoder is not None:
            self._encoder.close()
