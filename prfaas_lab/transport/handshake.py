"""The handshake of a data connection, sans I/O: four messages of fixed size.

    sender   -> HELLO      version, codec, nonce, fingerprint of the layout
    receiver -> CHALLENGE  nonce, and proof that it holds the run's key
    sender   -> PROOF      proof that it holds the run's key
    receiver -> WELCOME    accepted within bounds, or refused and why

Each proof is an HMAC-SHA256 over a role and everything said before, so neither can be replayed,
reflected or combined. Layouts and codecs are compared only once both sides have proved themselves.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from prfaas_lab.transport.codec import NAMES
from prfaas_lab.transport.errors import (
    CompressionMismatch,
    FrameError,
    HandshakeError,
    KeyMismatch,
    LayoutMismatch,
)
from prfaas_lab.transport.frames import VERSION

MAGIC = b"PFKV"
_HELLO = struct.Struct("!4sBB2x32s32s")
_CHALLENGE = struct.Struct("!4sB3x32s32s")
_WELCOME = struct.Struct("!4sBBBxII32s")
HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES, WELCOME_BYTES = _HELLO.size, _CHALLENGE.size, 32, _WELCOME.size


class Verdict(IntEnum):
    ACCEPTED = 0
    WRONG_KEY = 1
    WRONG_LAYOUT = 2
    TOO_MANY = 3
    WRONG_CODEC = 4


class Bounds(NamedTuple):
    """What a receiver takes from one sender."""

    window_bytes: int
    """Unacknowledged, over all its connections."""
    frame_bytes: int
    """Payload of one frame."""


class SenderHandshake:
    """The dialling side. Call `hello`, `challenged`, `welcomed` in turn."""

    def __init__(self, key: bytes, fingerprint: bytes, codec: int = 0) -> None:
        self._key, self._fingerprint, self._codec = key, _fixed(fingerprint), codec
        self._hello = _HELLO.pack(MAGIC, VERSION, codec, secrets.token_bytes(32), self._fingerprint)

    def hello(self) -> bytes:
        return self._hello

    def challenged(self, challenge: bytes) -> bytes:
        """Our proof. Raises KeyMismatch when the receiver's does not hold."""
        magic, version, _, proof = _unpack(_CHALLENGE, challenge)
        _check_version(magic, version)
        if not hmac.compare_digest(proof, _prove(self._key, b"receiver", self._hello, challenge[:-32])):
            raise KeyMismatch(
                "the receiver does not hold this run's key", remedy="is it an engine of another run?"
            )
        return _prove(self._key, b"sender", self._hello, challenge)

    def welcomed(self, welcome: bytes) -> Bounds:
        """What this receiver takes. Raises what its refusal says."""
        magic, version, verdict, codec, window_bytes, frame_bytes, theirs = _unpack(_WELCOME, welcome)
        _check_version(magic, version)
        if verdict == Verdict.ACCEPTED:
            return Bounds(window_bytes, frame_bytes)
        raise self._refusal(verdict, theirs, codec)

    def _refusal(self, verdict: int, theirs: bytes, codec: int) -> HandshakeError:
        if verdict == Verdict.WRONG_KEY:
            return KeyMismatch("the receiver refused our proof of this run's key")
        if verdict == Verdict.WRONG_LAYOUT:
            return layout_mismatch(self._fingerprint, theirs)
        if verdict == Verdict.WRONG_CODEC:
            return codec_mismatch(self._codec, codec)
        return HandshakeError("the receiver has as many connections as it takes")


class ReceiverHandshake:
    """The accepting side. Call `greeted` and `proved` in turn."""

    def __init__(self, key: bytes, fingerprint: bytes, bounds: Bounds, codec: int = 0) -> None:
        self._key, self._fingerprint, self._bounds = key, _fixed(fingerprint), bounds
        self._codec = self._their_codec = codec
        self._hello = self._challenge = self._theirs = b""

    def greeted(self, hello: bytes) -> bytes:
        """The challenge to send. Raises HandshakeError for what is no greeting of this version."""
        magic, version, self._their_codec, _, self._theirs = _unpack(_HELLO, hello)
        _check_version(magic, version)
        opening = _CHALLENGE.pack(MAGIC, VERSION, secrets.token_bytes(32), b"")[:-32]
        self._hello = hello
        self._challenge = opening + _prove(self._key, b"receiver", hello, opening)
        return self._challenge

    def proved(self, proof: bytes, *, full: bool = False) -> tuple[bytes, HandshakeError | None]:
        """The welcome or refusal to send, and in the second case what was wrong."""
        expected = _prove(self._key, b"sender", self._hello, self._challenge)
        if not hmac.compare_digest(proof, expected):
            return self._welcome(Verdict.WRONG_KEY), KeyMismatch("a sender does not hold this run's key")
        if not hmac.compare_digest(self._theirs, self._fingerprint):
            return self._welcome(Verdict.WRONG_LAYOUT), layout_mismatch(self._fingerprint, self._theirs)
        if self._their_codec != self._codec:
            return self._welcome(Verdict.WRONG_CODEC), codec_mismatch(self._codec, self._their_codec)
        if full:
            return self._welcome(Verdict.TOO_MANY), HandshakeError("as many connections as we take")
        return self._welcome(Verdict.ACCEPTED), None

    def _welcome(self, verdict: Verdict) -> bytes:
        # Who has not proved to hold the key learns nothing of the layout.
        ours = b"" if verdict == Verdict.WRONG_KEY else self._fingerprint
        return _WELCOME.pack(MAGIC, VERSION, verdict, self._codec, *self._bounds, ours)


def layout_mismatch(ours: bytes, theirs: bytes) -> LayoutMismatch:
    return LayoutMismatch(
        f"the peers' cache layouts differ (ours {ours.hex()[:12]}, the peer's {theirs.hex()[:12]})",
        remedy="give both engines the same model and chunk size",
    )


def codec_mismatch(ours: int, theirs: int) -> CompressionMismatch:
    return CompressionMismatch(
        f"the peers compress differently (ours {_codec_name(ours)}, the peer's {_codec_name(theirs)})",
        remedy="give both engines the same transport.compression",
    )


def _codec_name(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"codec {number}"


def _prove(key: bytes, role: bytes, *said: bytes) -> bytes:
    return hmac.digest(key, role + b"|" + b"".join(said), "sha256")


def _fixed(fingerprint: bytes) -> bytes:
    if len(fingerprint) != 32:
        raise ValueError(f"a layout fingerprint has 32 bytes, not {len(fingerprint)}")
    return fingerprint


def _unpack(form: struct.Struct, raw: bytes) -> tuple[Any, ...]:
    if len(raw) != form.size:
        raise FrameError("the peer ended the handshake early")
    return form.unpack(raw)


def _check_version(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise HandshakeError("the peer is no KVCache transport", remedy="is the port another service's?")
    if version != VERSION:
        raise HandshakeError(f"the peer speaks version {version} of the transport, this is version {VERSION}")
