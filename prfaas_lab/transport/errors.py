"""How a KVCache transfer can fail: each cause is its own error, and all are `TransportError`."""

from __future__ import annotations

from prfaas_lab.errors import TransportError


class FrameError(TransportError):
    """Bytes that are no frame of ours: garbage, truncation, a length out of bounds."""


class HandshakeError(TransportError):
    """The peer does not speak this protocol, or not this version of it."""


class KeyMismatch(HandshakeError):
    """The peer does not hold this run's key."""


class LayoutMismatch(HandshakeError):
    """The peers' models lay out their caches differently."""


class CompressionMismatch(HandshakeError):
    """The peers do not compress in the same way."""


class PeerLost(TransportError):
    """The peer cannot be reached, or every connection to it died and none came back in time."""


class TransferTimeout(TransportError):
    """The peer is there, but the transfer made no progress within its deadline."""


class UnknownTransfer(TransportError):
    """The receiver does not expect this transfer (any more)."""


class SegmentRefused(TransportError):
    """The receiver has no place for a segment: it does not belong to the transfer, or breaks a limit."""


class CorruptSegment(TransportError):
    """A piece of a segment arrived damaged as often as we were willing to send it, or a segment arrived
    whole and is no encoded form of anything."""


class TransferCancelled(TransportError):
    """One of the two sides gave the transfer up."""


class TransferWithdrawn(TransferCancelled):
    """Its sender will not send it from here after all; nothing of it was."""
