"""The floor plan of the package: which folder may import from which, and no file in a circle.

The core uses nothing that does input or output, and each outside thing (the compiled module, pyroute2, jeepney)
has one importer. A new folder, and a new file beside the folders, has to be given its place here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "autoip"

BELOW: Mapping[str, set[str]] = {
    "errors": set(),
    "journal": set(),
    "log": {"journal"},
    "paths": {"errors"},
    "core": {"errors"},
    "option_table": {"kernel.interface_names", "errors"},
    "options": {"option_table", "core", "errors"},
    "config": {"option_table", "options", "core", "errors"},
    "kernel": {"core", "errors"},
    "control": {"core", "errors", "paths"},
    "dhcp": {"core", "errors"},
    "daemon": {"kernel", "control", "options", "log", "paths", "core", "errors"},
    "commands": {
        "daemon",
        "dhcp",
        "kernel",
        "control",
        "config",
        "option_table",
        "options",
        "journal",
        "log",
        "paths",
        "core",
        "errors",
    },
    "__main__": {"commands", "errors"},
    "__init__": set(),
}
"""What each folder, and each file beside the folders, may import of the package besides itself: folders and files."""

PURE = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "errno",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "random",
    "re",
    "struct",
    "typing",
}
"""All that the core may use of other packages: none of it reads a clock, a file or a socket.

`random` is there for the type of the generator that the core is given.
"""
IMPURE_BUILTINS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
"""Input and output that need no import, and ways around the imports."""

IMPORTERS = {
    "autoip.kernel._native": {"kernel.native"},
    "autoip.kernel.native": {
        "kernel.arp_socket",
        "kernel.bulk_arp",
        "kernel.capabilities",
        "kernel.confinement",
        "kernel.tcx",
        "kernel.timers",
        "kernel.users",
    },
    "jeepney": {"daemon.networkmanager.dbus"},
    "pyroute2": {"kernel.netlink"},
}
"""Who may import each of these; nobody else."""


def imported(tree: ast.Module, name: str) -> Iterator[str]:
    """Full dotted names of all that file `name` of the package imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["autoip", *name.split(".")][: -node.level] if node.level else []
            base += [node.module] if node.module else []
            # `from autoip.core import acd` imports the file, `from autoip.core.acd import Acd` a name in it.
            yield from (".".join([*base, alias.name]) for alias in node.names)


def files(package: Path) -> dict[str, Path]:
    """The files of the package by their dotted names below it; a folder's own file has the folder's name."""
    found: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def file_of(full: str, names: set[str]) -> str | None:
    """The file of this package that a dotted name stands for; None for other packages."""
    parts = full.split(".")
    if parts[0] != "autoip":
        return None
    for length in range(len(parts), 1, -1):
        if (name := ".".join(parts[1:length])) in names:
            return name
    return "__init__"


def violations(package: Path) -> list[str]:
    """What breaks the rules in the package in that folder, one line each."""
    found: list[str] = []
    paths = files(package)
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        if (room := name.partition(".")[0]) not in BELOW:
            found.append(f"{name}: has no place in the floor plan")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        graph[name] = set()
        for full in imported(tree, name):
            found += (f"{name}: {fault}" for fault in faults(name, full, set(paths)))
            module = file_of(full, set(paths))
            if module not in (None, "__init__", name):
                graph[name].add(str(module))
        if room == "core":
            calls = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            found += (f"{name}: uses {call}()" for call in sorted(calls & IMPURE_BUILTINS))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle: " + " -> ".join(error.args[1]))
    return sorted(set(found))


def faults(name: str, full: str, names: set[str]) -> Iterator[str]:
    """What is wrong with file `name` importing `full`."""
    for owned, importers in IMPORTERS.items():
        if (full == owned or full.startswith(owned + ".")) and name not in importers:
            yield f"imports {owned}, which is for {', '.join(sorted(importers))} alone"
    room = name.partition(".")[0]
    module = file_of(full, names)
    if module is None:
        if room == "core" and full.partition(".")[0] not in PURE:
            yield f"imports {full.partition('.')[0]}, and the core does no input or output"
    elif (other := module.partition(".")[0]) not in (room, "__init__") and not BELOW[room] & {
        other,
        module,
    }:
        yield f"imports {module}, which is not below it"


def test_the_package_keeps_its_floor_plan() -> None:
    assert violations(PACKAGE) == []


def test_every_place_is_of_a_folder_or_file() -> None:
    there = {name.partition(".")[0] for name in files(PACKAGE)}
    assert there == set(BELOW)


def plant(package: Path, name: str, source: str) -> None:
    """Makes a package of that one file, and of empty ones that it may import."""
    for other in (
        "core.acd",
        "core.ipv4ll",
        "kernel.interface_names",
        "kernel.network",
        "kernel.native",
        "daemon.lock_file",
        "errors",
        "__init__",
    ):
        path = package.joinpath(*other.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    path = package.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(source)


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("core.acd", "from autoip.kernel.network import Network", "imports kernel.network, which"),
        ("core.acd", "from autoip.kernel import network", "imports kernel.network, which"),
        ("core.acd", "import autoip.kernel.network", "imports kernel.network, which"),
        ("core.acd", "from ..kernel.network import Network", "imports kernel.network, which"),
        ("core.acd", "from ..kernel import network", "imports kernel.network, which"),
        (
            "core.acd",
            "def f():\n    from autoip.kernel import network",
            "imports kernel.network, which",
        ),
        ("errors", "from autoip.core import acd", "imports core.acd, which"),
        ("option_table", "from autoip.kernel import network", "imports kernel.network, which"),
        (
            "kernel.network",
            "from autoip.daemon import lock_file",
            "imports daemon.lock_file, which",
        ),
        ("control.server", "from autoip.kernel import network", "imports kernel.network, which"),
        ("dhcp.install", "from autoip.kernel import network", "imports kernel.network, which"),
        ("core.arp", "import socket", "imports socket, and"),
        ("core.acd", "import time", "imports time, and"),
        ("core.ipv4ll", "from asyncio import sleep", "imports asyncio, and"),
        ("core.acd", "import logging, enum", "imports logging, and"),
        ("core.acd", "open('/etc/hosts')", "uses open()"),
        ("core.acd", "print(1)", "uses print()"),
        ("core.ipv4ll", "__import__('os')", "uses __import__()"),
        (
            "daemon.host",
            "from autoip.kernel import _native",
            "imports autoip.kernel._native, which",
        ),
        (
            "kernel.arp_socket",
            "from autoip.kernel._native import lib",
            "imports autoip.kernel._native, which",
        ),
        (
            "kernel.network",
            "from autoip.kernel.native import lib",
            "imports autoip.kernel.native, which",
        ),
        (
            "commands.main",
            "import autoip.kernel.native",
            "imports autoip.kernel.native, which",
        ),
        ("daemon.host", "import pyroute2", "imports pyroute2, which"),
        ("kernel.network", "from pyroute2.netlink import nlmsg", "imports pyroute2, which"),
        ("novel", "", "has no place in the floor plan"),
        ("deep.acd", "", "has no place in the floor plan"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, source: str, fault: str) -> None:
    plant(tmp_path, name, source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{name}: {fault}")


def test_a_circle_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "core.acd", "from autoip.core import ipv4ll")
    (tmp_path / "core" / "ipv4ll.py").write_text("from autoip.core.acd import Acd")
    (found,) = violations(tmp_path)
    assert found.startswith("a circle: ")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.acd", "from autoip.errors import AutoipError\nfrom autoip.core import ipv4ll"),
        ("core.ipv4ll", "from random import Random\nfrom collections.abc import Callable"),
        ("kernel.native", "from autoip.kernel._native import ffi, lib"),
        ("kernel.arp_socket", "from autoip.kernel.native import ffi, lib\nimport socket"),
        ("kernel.timers", "from autoip.kernel.native import check, lib"),
        ("kernel.netlink", "from pyroute2.netlink import nlmsg"),
        ("daemon.interface", "from autoip.kernel import network\nfrom autoip.core.acd import Acd"),
        ("commands.main", "from autoip import __version__\nimport autoip"),
        ("option_table", "from autoip.kernel import interface_names"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, name: str, source: str) -> None:
    plant(tmp_path, name, source)
    assert violations(tmp_path) == []


CLASS_MAX, FUNCTION_MAX = 300, 60
"""Lines, from the first decorator's line after it to the last."""


HOUSE = ("attack", "autoip", "bench", "conformance", "demo", "lab", "tools")


@pytest.mark.parametrize(
    "file",
    [file for folder in HOUSE for file in sorted((REPOSITORY / folder).rglob("*.py"))],
    ids=lambda file: str(file.relative_to(REPOSITORY)),
)
def test_nothing_is_too_long_to_read(file: Path) -> None:
    long = [
        (node.name, length)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1)
        > (CLASS_MAX if isinstance(node, ast.ClassDef) else FUNCTION_MAX)
    ]
    assert long == []
