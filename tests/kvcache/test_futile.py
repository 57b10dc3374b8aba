"""Claims about copies that came to nothing: who is told of them, and for how long."""

from __future__ import annotations

from kvcache_prompts import named

from prfaas_lab.kvcache.futile import FUTILE_S, FutileCopies

TURN = named(range(7))
NEXT_TURN, OTHER = named(range(20)), named([9, *range(20)])


def test_what_begins_like_a_futile_copy_is_futile_for_a_while() -> None:
    futile = FutileCopies()
    futile.add(TURN, "a", "b", 10.0)
    futile.add(TURN, "a", "c", 20.0)
    assert futile.among(NEXT_TURN, 20.0) == {("a", "b"), ("a", "c")}
    assert futile.among(OTHER, 20.0) == set()
    assert futile.among(TURN.beginning(2), 20.0) == set(), "less of it may find room"
    assert futile.among(NEXT_TURN, 10.0 + FUTILE_S) == {("a", "c")}


def test_one_that_is_futile_again_is_so_for_longer_and_what_is_past_is_forgotten() -> None:
    futile = FutileCopies()
    for number in range(100):
        futile.add(named([number, *range(20)]), "a", "b", 0.0)
    futile.add(TURN, "a", "b", 1.0)
    futile.add(TURN, "a", "b", FUTILE_S)
    assert futile.among(TURN, FUTILE_S + 10.0) == {("a", "b")}
    assert len(futile._until_s) == 1
