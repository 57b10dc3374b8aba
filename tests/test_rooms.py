"""The rooms of the house: who may import whom, what stays light, and where no clock may tick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prfaas_lab

PACKAGE = Path(prfaas_lab.__file__).parent
LEVELS = {
    "spec": 0, "errors": 0, "units": 0,
    "model": 1, "workload": 1, "metrics": 1,
    "kvcache": 2, "router": 2,
    "planner": 3, "engine": 3, "transport": 3, "fabric": 3,
    "lab": 4,
    "api": 5, "dashboard": 5, "report": 5,
    "cli": 6,
}  # fmt: skip
"""Imports go down. At level 0 spec, errors and units stand on one another, in that order."""
GROUND = ["errors", "units", "spec"]
CONTROL_PLANE = ["router", "planner", "kvcache", "workload", "metrics"]
HEAVY = ["torch", "transformers"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """`spec` for prfaas_lab/spec/load.py, `units` for prfaas_lab/units.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a tree imports, with its line, and with relative ones made absolute."""
    package = ("prfaas_lab", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "prfaas_lab":
                yield from ((f"prfaas_lab.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def offences(source: str, path: Path) -> list[str]:
    """Imports of a module that go up, or sideways into another room."""
    here, found = room_of(path), []
    for module, line in imports_of(ast.parse(source), path):
        parts = module.split(".")
        if parts[0] != "prfaas_lab" or len(parts) < 2 or parts[1] == here or parts[1] == "__version__":
            continue
        there = parts[1]
        grounded = here in GROUND and there in GROUND and GROUND.index(there) < GROUND.index(here)
        if there not in LEVELS or not (LEVELS[there] < LEVELS[here] or grounded):
            found.append(f"{path.relative_to(PACKAGE)}:{line}: {here} imports {module}")
    return found


def test_every_room_has_its_level() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms <= LEVELS.keys()


@pytest.mark.parametrize("room", LEVELS)
def test_imports_go_down_only_and_never_to_a_sibling(room: str) -> None:
    modules = [path for path in MODULES if room_of(path) == room]
    assert [offence for path in modules for offence in offences(path.read_text(), path)] == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("router", "from prfaas_lab.lab.run import run"),
        ("router", "import prfaas_lab.kvcache.pool"),
        ("engine", "def late():\n    from prfaas_lab.transport import send"),
        ("fabric", "from ..planner import grid"),
        ("spec", "from prfaas_lab import model"),
        ("units", "from prfaas_lab.spec import load"),
        ("lab", "import prfaas_lab.unheard_of"),
    ],
)
def test_an_offence_would_be_found(room: str, line: str) -> None:
    path = PACKAGE / f"{room}.py" if room in GROUND[:2] else PACKAGE / room / "made_up.py"
    assert offences(line, path)


# -- torch only where it is asked for ---------------------------------------------------------


def at_import(tree: ast.Module) -> ast.Module:
    """The tree without what runs only when called: function bodies and type-checking imports."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_modules_named_for_torch_import_it_at_once(path: Path) -> None:
    if path.name.startswith("torch_"):
        return
    modules = [module for module, _ in imports_of(at_import(ast.parse(path.read_text())), path)]
    assert not [module for module in modules if module.split(".")[0] in HEAVY]


@pytest.mark.parametrize("module", ["prfaas_lab.cli; prfaas_lab.cli.application()", "prfaas_lab.lab.run"])
def test_the_controller_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# -- time comes in from outside ---------------------------------------------------------------

NOW = {"now", "utcnow", "today"}


def clock_uses(source: str) -> list[int]:
    """Lines that can read the machine's clock or sleep on it. `loop.time()` is not one of them, and
    `datetime` may parse what a file says."""
    return [getattr(node, "lineno", 0) for node in ast.walk(ast.parse(source)) if is_clock(node)]


def is_clock(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return "time" in [alias.name for alias in names]
        case ast.ImportFrom(module=module):
            return module == "time"
        case ast.Attribute(value=value, attr=attr):
            return attr in NOW and "date" in ast.unparse(value)
    return False


@pytest.mark.parametrize("room", CONTROL_PLANE)
def test_the_control_plane_has_no_clock_of_its_own(room: str) -> None:
    modules = [path for path in MODULES if room_of(path) == room]
    assert modules
    uses = [
        f"{path.relative_to(PACKAGE)}:{line}" for path in modules for line in clock_uses(path.read_text())
    ]
    assert uses == []


@pytest.mark.parametrize(
    "line", ["import time", "from time import sleep", "datetime.now(UTC)", "x = datetime.date.today()"]
)
def test_a_clock_would_be_found(line: str) -> None:
    assert clock_uses(line)


@pytest.mark.parametrize(
    "line", ["loop.time()", "datetime.fromisoformat(text)", "from datetime import datetime"]
)
def test_the_loops_time_and_a_files_dates_are_no_clock(line: str) -> None:
    assert not clock_uses(line)


# -- randomness too ---------------------------------------------------------------------------


def dice(source: str) -> list[int]:
    """Lines that draw from a generator nobody seeded: `random.x()`, `np.random.x()`, `default_rng()`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        shared = called.startswith("random.") and called != "random.Random"
        legacy = called.startswith(("np.random.", "numpy.random.")) and called.split(".")[-1][0].islower()
        seeded = called.endswith("default_rng") and (node.args or node.keywords)
        if shared or (legacy and not seeded) or (called in ("random.Random",) and not node.args):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("room", CONTROL_PLANE)
def test_the_control_plane_rolls_no_dice_of_its_own(room: str) -> None:
    modules = [path for path in MODULES if room_of(path) == room]
    uses = [f"{path.relative_to(PACKAGE)}:{line}" for path in modules for line in dice(path.read_text())]
    assert uses == []


@pytest.mark.parametrize(
    "line", ["random.random()", "np.random.normal()", "np.random.default_rng()", "random.Random()"]
)
def test_dice_would_be_found(line: str) -> None:
    assert dice(line)


@pytest.mark.parametrize("line", ["rng.random()", "np.random.default_rng(seed)", "random.Random(seed)"])
def test_a_seeded_generator_is_no_dice(line: str) -> None:
    assert not dice(line)
