from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.dashboard.glyphs import ASCII, UNICODE, Glyphs, Point, bar, chart, sparkline

BOTH = pytest.mark.parametrize("glyphs", [ASCII, UNICODE])
POINTS = st.lists(
    st.builds(Point, st.floats(0, 1e12), st.one_of(st.none(), st.just(0.0), st.floats(1, 1e12))), max_size=80
)


@BOTH
@given(st.floats(-1, 2), st.integers(1, 60))
def test_a_bar_has_its_width_and_is_full_only_when_full(glyphs: Glyphs, fraction: float, width: int) -> None:
    full, empty = bar(fraction, width, glyphs)
    assert len(full) + len(empty) == width
    assert bool(full) == (fraction > 0)
    if fraction < 1 - 1 / width:
        assert empty


@BOTH
@given(POINTS, st.integers(1, 60), st.integers(1, 12))
def test_charts_have_their_size(glyphs: Glyphs, points: list[Point], width: int, height: int) -> None:
    assert len(sparkline(points, width, glyphs)) == width
    assert [len(row) for row in chart(points, width, height, glyphs)] == [width] * height


def test_a_narrower_link_shows_as_a_lower_line() -> None:
    rows = chart([Point(50.0, 100.0), Point(30.0, 50.0)], 2, 10, UNICODE)
    assert rows[0] == "╌ "
    assert rows[5] == "█╌"
    assert rows[9] == "██"


def test_a_link_hardly_used_is_drawn_to_its_own_scale() -> None:
    assert sparkline([Point(1.0, 100.0), Point(0.5, 100.0)], 2, UNICODE) == "▆▃"


def test_an_idle_link_is_blank_and_an_outage_is_not() -> None:
    assert sparkline([Point(0.0, 100.0), Point(0.0, 0.0)], 2, UNICODE) == " ✕"


def test_a_trickle_is_never_drawn_as_nothing() -> None:
    assert sparkline([Point(1.0, 100.0), Point(100.0, 100.0)], 2, UNICODE) == "▁█"
