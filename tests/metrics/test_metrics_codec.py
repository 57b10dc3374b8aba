from __future__ import annotations

import typing
from pathlib import Path

import pytest
from fake_run import FakeRun
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.errors import LabError
from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.codec import KINDS, decode, encode, read_events
from prfaas_lab.metrics.files import EventWriter

_LEAVES: dict[object, st.SearchStrategy[object]] = {
    str: st.text(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    type(None): st.none(),
}


def _values(hint: object) -> st.SearchStrategy[object]:
    if hint in _LEAVES:
        return _LEAVES[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(_values(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(_values, arguments))
    return st.one_of(*map(_values, arguments))


def _any_of(kind: type[ev.Event]) -> st.SearchStrategy[ev.Event]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: _values(hints[name]) for name in kind.__struct_fields__})


CONCRETE = [kind for kind in KINDS.values() if kind not in (ev.Event, ev.RequestEvent)]
ANY_EVENT = st.one_of(*map(_any_of, CONCRETE))


@given(ANY_EVENT)
def test_every_event_reads_back_as_itself(event: ev.Event) -> None:
    line = encode(event)
    assert b"\n" not in line
    assert decode(line) == event
    assert type(decode(line)) is type(event)


def test_a_written_run_reads_back_as_it_was(tmp_path: Path) -> None:
    events = FakeRun(requests=5).events()
    with EventWriter(tmp_path / "events.jsonl") as write:
        for event in events:
            write(event)
    assert list(read_events(tmp_path / "events.jsonl")) == events


def test_a_killed_run_loses_only_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = encode(ev.Noted(at_s=1.0, level="info", text="one"))
    path.write_bytes(whole + b"\n" + whole[:20])
    assert [event.at_s for event in read_events(path)] == [1.0]


@pytest.mark.parametrize(
    "line", ["[]", '{"kind":"Nope"}', '{"kind":["Noted"]}', '{"kind":"Noted"}', "x", '{"at_s":1}']
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(LabError, match=r"not an event") as caught:
        list(read_events(path))
    assert f"{path}:1" in str(caught.value)


def test_events_reach_the_file_within_a_second_of_their_own_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as write:
        write(ev.Noted(at_s=0.1, level="info", text="first"))
        assert path.read_text() == ""
        write(ev.Noted(at_s=1.2, level="info", text="second"))
        assert len(path.read_text().splitlines()) == 2


def test_a_burst_of_events_does_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as write:
        for _ in range(2000):
            write(ev.Noted(at_s=0.1, level="info", text="same instant"))
        assert len(path.read_text().splitlines()) > 1000


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(ev.MachineSampled(at_s=0.0, cpu_fraction=float("nan"), timer_lag_s=0.0))


def test_a_run_of_before_pools_counted_so_much_still_reads() -> None:
    line = (
        '{"kind":"CacheSampled","at_s":1.0,"engine":"p0","blocks":1,"snapshots":1,"memory_bytes":2,'
        '"disk_bytes":0,"lookups":3,"hits":1,"prompt_tokens":9,"hit_tokens":4,"snapshots_made":1,'
        '"snapshots_reused":0,"evicted_blocks":0,"evicted_snapshots":0,"spilled":0,"damaged":0}'
    )
    event = decode(line)
    assert isinstance(event, ev.CacheSampled)
    assert (event.hit_tokens, event.reloaded, event.transfers_made, event.role) == (4, 0, 0, "")
