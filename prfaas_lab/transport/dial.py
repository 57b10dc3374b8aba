"""One connection to a receiver: dialled, and agreed on."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from prfaas_lab.transport.codec import Codec, number_of
from prfaas_lab.transport.errors import PeerLost
from prfaas_lab.transport.handshake import CHALLENGE_BYTES, WELCOME_BYTES, Bounds, SenderHandshake
from prfaas_lab.transport.sockets import prepare, read_exactly, write_all

Peer = tuple[str, int]
"""Host and port of a receiver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both ends of a connection must have the same of."""

    key: bytes
    fingerprint: bytes
    codec: Codec | None


async def dial(peer: Peer, terms: Terms, *, timeout_s: float) -> tuple[socket.socket, Bounds]:
    """A connection, and what the receiver takes on it. Raises PeerLost, or the handshake's error."""
    sock = socket.socket(socket.AF_INET6 if ":" in peer[0] else socket.AF_INET)
    try:
        prepare(sock)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, peer)
            return sock, await _shake_hands(sock, terms)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):  # TimeoutError is one
            raise PeerLost(f"no connection: {error or 'timed out'}", where=name_of(peer)) from error
        raise


def name_of(peer: Peer) -> str:
    return f"{peer[0]}:{peer[1]}"


async def _shake_hands(sock: socket.socket, terms: Terms) -> Bounds:
    handshake = SenderHandshake(terms.key, terms.fingerprint, number_of(terms.codec))
    await write_all(sock, handshake.hello())
    await write_all(sock, handshake.challenged(await read_exactly(sock, CHALLENGE_BYTES)))
    return handshake.welcomed(await read_exactly(sock, WELCOME_BYTES))
