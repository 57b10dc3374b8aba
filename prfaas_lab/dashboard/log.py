"""The lines of the log: what a person would want to be told of a run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from prfaas_lab.metrics import events as ev
from prfaas_lab.metrics.requests import cause
from prfaas_lab.units import format_duration, format_rate

LINES = 200
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """Lines with the same key that follow each other are shown as one, with a count."""

    at_s: float
    level: Level
    text: str
    key: tuple[str, ...] = ()
    count: int = 1


class Log:
    """The last LINES lines."""

    def __init__(self) -> None:
        self.lines: deque[LogLine] = deque(maxlen=LINES)
        self._phases: set[tuple[str, str]] = set()

    def observe(self, event: ev.Event) -> list[LogLine]:
        """Take in an event; returns the lines it gave, for who prints them as they come."""
        if isinstance(event, ev.PhaseChanged):
            if (event.name, event.detail) in self._phases:
                return []
            self._phases |= {(event.name, ""), (event.name, event.detail)}
        lines = log_lines(event)
        for line in lines:
            self._append(line)
        return lines

    def _append(self, line: LogLine) -> None:
        if line.key and self.lines and self.lines[-1].key == line.key:
            line = replace(line, count=self.lines.pop().count + 1)
        self.lines.append(line)


def log_lines(event: ev.Event) -> list[LogLine]:
    """What an event is worth in the log; most are worth nothing."""
    match event:
        case ev.Noted():
            level: Level = "warning" if event.level == "warning" else "info"
            return _line(event, "error" if event.level == "error" else level, event.text)
        case ev.PhaseChanged():
            words = f"{event.name}: {event.detail}" if event.detail else _PHASES.get(event.name, event.name)
            return _line(event, "info", words)
        case ev.EngineStarted():
            where = f"{event.netns}, " if event.netns else ""  # the relay shaper makes no namespaces
            return _line(event, "info", f"{event.engine} is ready ({where}pid {event.pid})")
        case ev.EngineDied():
            words = f"{event.engine} died ({event.exit_status}): {event.last_words}"
            return _line(event, "error", words)
        case ev.LinkMeasured():
            return _measured(event)
        case ev.LinkChanged():
            key = ("changed", event.link, event.source)
            return _line(event, "info", f"{event.link} from {event.source}: {event.change}", key)
        case ev.PlanChanged():
            threshold = "none" if event.threshold_tokens is None else str(event.threshold_tokens)
            words = f"plan: {event.policy}, threshold {threshold}: {event.reason}"
            return _line(event, "info", words)
        case ev.RequestFailed():
            words = f"{event.request_id} failed in {event.stage}: {event.reason}"
            return _line(event, "error", words, ("failed", event.stage, cause(event.reason)))
        case ev.RequestVerified() if event.outcome == "mismatch":
            words = f"{event.request_id}: output differs from one-process generation {event.detail}"
            return _line(event, "error", words.rstrip())
        case _:
            return []


_PHASES = {
    "network": "bringing up the network",
    "model": "loading the model",
    "engines": "starting engines",
    "links": "measuring links",
    "running": "the workload starts",
    "draining": "no more arrivals: draining",
    "verifying": "verifying outputs",
    "teardown": "tearing down",
}


def _line(event: ev.Event, level: Level, text: str, key: tuple[str, ...] = ()) -> list[LogLine]:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return [LogLine(at_s=event.at_s, level=level, text=printable, key=key)]


def _measured(event: ev.LinkMeasured) -> list[LogLine]:
    spec = "unshaped" if event.configured_bps is None else f"of {format_rate(event.configured_bps)}"
    rtt, wanted = (format_duration(ms / 1e3) for ms in (event.measured_rtt_ms, event.configured_rtt_ms))
    words = (
        f"{event.link} from {event.source}: {format_rate(event.measured_bps)} {spec}, RTT {rtt} of {wanted}"
    )
    doubts = [line for reason in event.reasons for line in _line(event, "warning", reason)]
    return [*_line(event, "info", words), *doubts]
