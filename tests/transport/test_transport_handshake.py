"""The handshake: both sides prove the key, then compare layouts, and every lie is found out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import TransportError
from prfaas_lab.transport.errors import FrameError, HandshakeError, KeyMismatch, LayoutMismatch
from prfaas_lab.transport.handshake import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    PROOF_BYTES,
    WELCOME_BYTES,
    Bounds,
    ReceiverHandshake,
    SenderHandshake,
)

KEY, PRINT = b"k" * 32, b"p" * 32


def ends(*, key: bytes = KEY, fingerprint: bytes = PRINT):
    return SenderHandshake(key, fingerprint), ReceiverHandshake(KEY, PRINT, Bounds(12345, 1000))


def test_two_that_share_key_and_layout_agree_on_the_bounds():
    sender, receiver = ends()
    challenge = receiver.greeted(sender.hello())
    proof = sender.challenged(challenge)
    welcome, error = receiver.proved(proof)
    assert error is None
    assert sender.welcomed(welcome) == Bounds(12345, 1000)
    said = (sender.hello(), challenge, proof, welcome)
    assert tuple(map(len, said)) == (HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES, WELCOME_BYTES)


def test_the_sender_finds_a_receiver_without_the_key():
    sender, receiver = ends(key=b"other" * 8)
    with pytest.raises(KeyMismatch):
        sender.challenged(receiver.greeted(sender.hello()))


def test_the_receiver_finds_a_sender_without_the_key_and_tells_it_no_layout():
    sender, receiver = ends()
    receiver.greeted(sender.hello())
    welcome, error = receiver.proved(bytes(PROOF_BYTES))
    assert isinstance(error, KeyMismatch)
    assert PRINT not in welcome
    with pytest.raises(KeyMismatch):
        sender.welcomed(welcome)


def test_a_proof_of_another_connection_does_not_hold():
    sender, receiver = ends()
    proof = sender.challenged(receiver.greeted(sender.hello()))
    _, other = ends()
    other.greeted(sender.hello())
    assert isinstance(other.proved(proof)[1], KeyMismatch)


def test_a_receivers_own_proof_does_not_serve_as_a_senders():
    sender, receiver = ends()
    challenge = receiver.greeted(sender.hello())
    assert isinstance(receiver.proved(challenge[-32:])[1], KeyMismatch)


@pytest.mark.parametrize(
    ("given_", "full", "error"),
    [({"fingerprint": b"q" * 32}, False, LayoutMismatch), ({}, True, HandshakeError)],
    ids=["layout", "full"],
)
def test_a_refusal_reads_the_same_on_both_sides(given_, full, error):
    sender, receiver = ends(**given_)
    proof = sender.challenged(receiver.greeted(sender.hello()))
    welcome, here = receiver.proved(proof, full=full)
    assert type(here) is error
    with pytest.raises(error):
        sender.welcomed(welcome)


@given(st.binary(max_size=200))
def test_garbage_at_any_step_is_a_transport_error(garbage):
    sender, receiver = ends()
    for step in (sender.challenged, sender.welcomed, receiver.greeted):
        with pytest.raises((TransportError, FrameError)):
            step(garbage)


def test_another_version_is_named():
    sender, receiver = ends()
    hello = bytearray(sender.hello())
    hello[4] = 9
    with pytest.raises(HandshakeError, match="version 9"):
        receiver.greeted(bytes(hello))
