"""Reads topology and scenario files; every mistake in them is told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from prfaas_lab.errors import SpecError
from prfaas_lab.spec.document import Document, PathInFile, Problem, Unreadable
from prfaas_lab.spec.problems import validate
from prfaas_lab.spec.scenario import CsvTrace, Fluctuation, MahimahiTrace, Resolved, Scenario, TraceFile
from prfaas_lab.spec.topology import Topology, misfits
from prfaas_lab.spec.yaml_text import read_document

T = TypeVar("T")
Ends = Mapping[str, tuple[str, str]]
"""The datacenters that each link joins, as far as the file is readable."""


def load_topology(path: str | Path) -> Topology:
    """A topology file's value. Raises SpecError with every mistake in it."""
    return _or_raise(*_topology_in(read_document(Path(path))))


def load_scenario(path: str | Path) -> Resolved:
    """A scenario with its topology. Raises SpecError with every mistake in both files."""
    path = Path(path)
    document = read_document(path)
    scenario, problems = validate(Scenario, document)
    topology, ends, topology_problems = _topology_of(document, scenario)
    problems += topology_problems
    problems += _misnamed(document, ends)
    problems += _late(document)
    problems += _missing_traces(document)
    resolved = None
    if scenario is not None and topology is not None:
        settled = _settled(scenario, topology, path.parent)
        resolved = Resolved(scenario=settled, topology=topology, source=str(path))
    return _or_raise(resolved, problems)


def kind_of(path: str | Path) -> Literal["topology", "scenario"]:
    """Whether a file is a topology or a scenario, by its keys. Raises SpecError if it is neither."""
    keys = read_document(Path(path)).root.keys()
    if keys & {"topology", "workload"}:
        return "scenario"
    if keys & {"datacenters", "links"}:
        return "topology"
    raise Unreadable(
        str(path), "is neither a topology (datacenters:) nor a scenario (topology:, workload:)", 1
    )


def _or_raise(value: T | None, problems: Iterable[Problem]) -> T:
    if found := sorted(set(problems)):
        raise SpecError([str(problem) for problem in found])
    assert value is not None
    return value


# -- the topology -----------------------------------------------------------------------------


def _topology_in(document: Document) -> tuple[Topology | None, list[Problem]]:
    topology, problems = validate(Topology, document)
    if topology is None:
        problems += _loose_ends(document, document.root, ())
    return topology, problems


def _topology_of(
    document: Document, scenario: Scenario | None
) -> tuple[Topology | None, Ends | None, list[Problem]]:
    """The topology that a scenario names or holds, what its links join, and what is wrong with it."""
    written = document.root.get("topology")
    if isinstance(written, Mapping):
        inline = scenario.topology if scenario is not None else None
        assert not isinstance(inline, str)
        return inline, _ends(written), _loose_ends(document, written, ("topology",)) if inline is None else []
    if not isinstance(written, str) or not written:
        return None, None, []
    path = Path(document.file).parent / Path(written).expanduser()
    if not path.exists():
        return None, None, [document.problem(("topology",), _no_file(path, "*.yaml"))]
    try:
        other = read_document(path)
    except Unreadable as error:
        return None, None, [error.problem]
    topology, problems = _topology_in(other)
    return topology, _ends(other.root), problems


def _loose_ends(document: Document, topology: Mapping[str, Any], path: PathInFile) -> list[Problem]:
    """What a topology that has other mistakes too gets wrong as a whole, as far as one can tell."""
    sites = topology.get("datacenters")
    if not isinstance(sites, Mapping) or not sites:
        return []
    roles = {name: str(site.get("role")) if isinstance(site, Mapping) else "" for name, site in sites.items()}
    links, ends = topology.get("links", {}), _ends(topology)
    found = misfits(roles, ends)
    whole = (
        set(roles.values()) <= {"prfaas", "local"} and isinstance(links, Mapping) and len(ends) == len(links)
    )
    return [document.problem((*path, *at), text) for at, text in found if whole or at[0] == "links"]


def _ends(topology: Mapping[str, Any]) -> Ends:
    links = topology.get("links")
    pairs = {name: _pair(link) for name, link in links.items()} if isinstance(links, Mapping) else {}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def _pair(link: Any) -> tuple[str, str] | None:
    match link.get("between") if isinstance(link, Mapping) else None:
        case [str(one), str(other)]:
            return one, other
    return None


# -- the scenario against it ------------------------------------------------------------------


def _sections(document: Document, key: str) -> Iterator[tuple[PathInFile, Mapping[str, Any]]]:
    items = document.root.get(key)
    for i, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield (key, i), item


def _misnamed(document: Document, ends: Ends | None) -> Iterator[Problem]:
    """Fluctuations and events on links or datacenters that are not there, or set twice."""
    if ends is None:
        return
    fluctuating: dict[tuple[str, str], PathInFile] = {}
    for path, item in [*_sections(document, "fluctuations"), *_sections(document, "events")]:
        link, source = item.get("link"), item.get("source")
        if not isinstance(link, str):
            continue
        if link not in ends:
            yield document.problem((*path, "link"), f"there is no link {link!r} ({_offer(link, ends)})")
            continue
        if isinstance(source, str) and source not in ends[link]:
            remedy = f"it joins {' and '.join(ends[link])}"
            yield document.problem((*path, "source"), f"link {link!r} does not leave {source!r} ({remedy})")
            continue
        if path[0] == "fluctuations":
            for end in [source] if isinstance(source, str) else ends[link]:
                if (link, end) in fluctuating:
                    text = f"link {link!r} out of {end!r} fluctuates already (merge the two, or set source:)"
                    yield document.problem(path, text)
                fluctuating[link, end] = path


def _late(document: Document) -> Iterator[Problem]:
    """Events that would wait for more requests than there are."""
    workload = document.root.get("workload")
    requests = workload.get("requests") if isinstance(workload, Mapping) else None
    for path, event in _sections(document, "events"):
        after = event.get("after_requests")
        if isinstance(requests, int) and isinstance(after, int) and after > requests:
            text = f"{after} are never submitted (workload.requests is {requests})"
            yield document.problem((*path, "after_requests"), text)


def _missing_traces(document: Document) -> Iterator[Problem]:
    workload = document.root.get("workload")
    found: list[tuple[PathInFile, Any]] = [
        ((*path, "bandwidth"), item.get("bandwidth")) for path, item in _sections(document, "fluctuations")
    ]
    if isinstance(workload, Mapping):
        found.append((("workload", "arrivals"), workload.get("arrivals")))
    for path, item in found:
        file = item.get("file") if isinstance(item, Mapping) else None
        if isinstance(file, str) and file:
            trace = Path(document.file).parent / Path(file).expanduser()
            if not trace.is_file():
                yield document.problem((*path, "file"), _no_file(trace, f"*{trace.suffix}"))


def _no_file(path: Path, pattern: str) -> str:
    try:
        found = sorted(other.name for other in path.parent.glob(pattern) if other.is_file())
    except OSError:
        found = []
    return f"no such file: {path} ({_offer(path.name, found)})"


def _offer(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"have: {', '.join(names[:8])}" if names else "check the path" if "." in word else "there is none"


def _settled(scenario: Scenario, topology: Topology, folder: Path) -> Scenario:
    """With the topology in place and every path absolute, so that it runs from anywhere."""
    model = scenario.model
    if model.path is not None and (folder / Path(model.path).expanduser()).is_dir():
        model = model.model_copy(update={"path": str((folder / Path(model.path).expanduser()).resolve())})
    fluctuations = tuple(_with_absolute_file(item, folder) for item in scenario.fluctuations)
    workload = scenario.workload
    if isinstance(workload.arrivals, TraceFile):
        file = str((folder / Path(workload.arrivals.file).expanduser()).resolve())
        workload = workload.model_copy(
            update={"arrivals": workload.arrivals.model_copy(update={"file": file})}
        )
    settled = {"topology": topology, "model": model, "fluctuations": fluctuations, "workload": workload}
    return scenario.model_copy(update=settled)


def _with_absolute_file(fluctuation: Fluctuation, folder: Path) -> Fluctuation:
    bandwidth = fluctuation.bandwidth
    if not isinstance(bandwidth, MahimahiTrace | CsvTrace):
        return fluctuation
    file = str((folder / Path(bandwidth.file).expanduser()).resolve())
    return fluctuation.model_copy(update={"bandwidth": bandwidth.model_copy(update={"file": file})})
