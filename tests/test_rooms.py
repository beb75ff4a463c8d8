"""The rooms of the package depend on each other in one direction: the import graph has no circle, and laws hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "fpe_lightning"
FLOORS = (
    {"registry", "paths", "extras", "epochs", "arguments"},
    {"sparse"},
    {"sites", "partitions", "pruning"},
    {"expansion"},
    {"rewiring"},
    {"command_line"},
    {"checkpoints"},
    {"interference", "networks"},
    {"modules", "data"},
    {"callbacks"},
    {"cli", "advise"},
    {"commands"},
)
"""Rooms from the ground up: a room imports rooms of lower floors only."""
TORCH_ALONE = (
    *("registry", "paths", "extras", "epochs", "arguments", "sparse", "sites", "partitions", "pruning", "expansion"),
    *("command_line", "rewiring", "checkpoints", "interference", "networks"),
)
"""Rooms that never import Lightning."""
HEAVY = {"matplotlib", "scipy", "tensorboard"}
"""Libraries that are imported where they are used, because they take seconds."""

Graph = dict[str, set[str]]


def _names(node: ast.stmt, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement may load: modules, and attributes that may be modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
        origin = ".".join(filter(None, (base, node.module)))
        yield from (f"{origin}.{alias.name}" for alias in node.names)


def _imports(body: list[ast.stmt], lazy: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Import statements with whether they wait for a call; blocks for type checkers are left out."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, lazy
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, lazy)
            continue
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for part in ("body", "orelse", "finalbody"):
            yield from _imports(getattr(node, part, []), inside)
        for handler in getattr(node, "handlers", []):
            yield from _imports(handler.body, inside)


@cache
def modules() -> dict[str, Path]:
    """Files of the package by module name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(module: str, lazy: bool) -> frozenset[str]:
    """Names that a module imports at once, or from inside of functions."""
    path = modules()[module]
    nodes = _imports(ast.parse(path.read_text()).body)
    found = (name for node, waits in nodes if waits == lazy for name in _names(node, module, path.stem == "__init__"))
    return frozenset(found)


def _module_of(name: str) -> str | None:
    """The module of this package that a dotted name belongs to."""
    while name:
        if name in modules():
            return name
        name = name.rpartition(".")[0]
    return None


@cache
def module_graph(lazy: bool = False) -> Graph:
    """Modules of the package, and those that each imports."""
    edges = {module: {_module_of(name) for name in imported(module, lazy)} for module in modules()}
    return {module: {target for target in targets if target not in (None, module)} for module, targets in edges.items()}  # type: ignore[misc]


def room_of(module: str) -> str:
    """The first part of a name below the package; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def room_graph(lazy: bool = False) -> Graph:
    """Rooms of the package, and those that each imports; the package's own face imports the rooms, not they it."""
    rooms: Graph = {}
    for module, targets in module_graph(lazy).items():
        if module != PACKAGE:
            own = room_of(module)
            rooms.setdefault(own, set()).update(room_of(target) for target in targets if room_of(target) != own)
    return rooms


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_circle_of_modules() -> None:
    assert circles(module_graph()) == []


def test_no_circle_of_rooms() -> None:
    assert circles(room_graph()) == []


def test_every_room_has_a_floor() -> None:
    assert set(room_graph()) == set().union(*FLOORS)


@pytest.mark.parametrize("lazy", [False, True])
def test_rooms_import_lower_floors_only(lazy: bool) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = [
        f"{module} -> {target}"
        for module, targets in module_graph(lazy).items()
        if module != PACKAGE
        for target in targets - {PACKAGE}  # a version read inside of a function; at once, it would be a circle
        if room_of(module) != room_of(target) and floor[room_of(target)] >= floor[room_of(module)]
    ]
    assert upwards == []


@pytest.mark.parametrize("room", ["partitions", "pruning"])
def test_pure_functions_of_tensors_import_no_room_but_names_and_extras(room: str) -> None:
    assert (room_graph()[room] | room_graph(lazy=True)[room]) <= {"registry", "extras", "arguments"}


def test_expansion_does_not_need_interference() -> None:
    assert "interference" not in room_graph()["expansion"] | room_graph(lazy=True)["expansion"]


@pytest.mark.parametrize("room", TORCH_ALONE)
def test_only_callbacks_modules_data_and_the_command_line_know_lightning(room: str) -> None:
    found = [
        f"{module}: {name}"
        for module in modules()
        if room_of(module) == room
        for lazy in (False, True)
        for name in imported(module, lazy)
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_utilities")
    ]
    assert found == []


def test_the_package_does_not_import_studies_benchmarks_or_tests() -> None:
    outside = {"studies", "benchmarks", "tests", "callbacks", "train"}
    found = [
        f"{module}: {name}"
        for module in modules()
        for lazy in (False, True)
        for name in imported(module, lazy)
        if name.partition(".")[0] in outside
    ]
    assert found == []


def _reached(start: str) -> set[str]:
    """Every module that importing one loads, faces of packages included."""
    graph, found, new = module_graph(), set(), {start}
    while new:
        found |= new
        parents = {module.rpartition(".")[0] for module in new} - {""}
        new = ({target for module in new for target in graph[module]} | parents) - found
    return found


@pytest.mark.parametrize("face", [PACKAGE, f"{PACKAGE}.callbacks"])
def test_importing_a_face_imports_no_heavy_library(face: str) -> None:
    found = [
        f"{module}: {name}"
        for module in sorted(_reached(face))
        for name in imported(module, lazy=False)
        if name.partition(".")[0] in HEAVY or name.startswith("torch.utils.tensorboard")
    ]
    assert found == []


def _loaded(module: str) -> set[str]:
    """First parts of the names of all modules that a fresh process has after an import."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_core_loads_neither_lightning_nor_a_heavy_library() -> None:
    assert not _loaded(PACKAGE) & {*HEAVY, "lightning", "torchmetrics"}


def test_callbacks_load_no_heavy_library_that_lightning_does_not_load_itself() -> None:
    assert not (_loaded(f"{PACKAGE}.callbacks") - _loaded("lightning.pytorch")) & HEAVY


def test_files_of_tests_have_names_of_their_own() -> None:
    """They are imported by their name alone, and nothing is collected where two folders share one."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []
