"""The layers of the package: a file imports only from lower levels.

The negotiation core uses nothing that does input or output, and each outside thing (the two
compiled modules, pyroute2) has one importer.  A new file has to be given its level here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "autoip"

# From the lowest level up.  Files of one level do not import one another.
LEVELS: list[set[str]] = [
    {"__init__"},
    {"constants", "errors", "report"},
    {"arp", "links"},
    {"acd", "diagnosis"},
    {"ipv4ll", "policy"},
    {"options"},
    {"dbus", "rtnl"},
    {"broadcast", "log", "onlink", "privileges", "source_rule"},
    {
        "arpsock",
        "client",
        "clients",
        "config",
        "control",
        "instance",
        "netlink",
        "networkmanager",
        "notify",
        "processes",
        "rooted",
        "script",
        "sockdiag",
        "store",
        "teller",
        "terminal",
        "worker",
    },
    {"holding", "kept_routes", "routes", "strangers"},
    {"interface"},
    {"daemon"},
    {"usage"},
    {"ask", "hooks", "probe", "run"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# The core: up to here, no input and no output.
CORE = LEVEL["ipv4ll"]

# All that the core may use of other packages: none of it reads a clock, a file or a socket.
# `random` is there for the type of the generator that the core is given.
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
# Input and output that need no import, and ways around the imports.
IMPURE_BUILTINS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}

SOLE_IMPORTER = {
    "autoip._arpsock": "arpsock",
    "autoip._privileges": "privileges",
    "jeepney": "dbus",
    "pyroute2": "rtnl",
}


def imported(tree: ast.Module) -> Iterator[str]:
    """Full dotted names of all that a file of the package imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The package is flat: a relative import starts at the package itself.
            base = [] if node.level == 0 else ["autoip"]
            base += [node.module] if node.module else []
            # `from autoip import acd` imports the file, `from autoip.acd import Acd` a name in it.
            names = [alias.name for alias in node.names] if base == ["autoip"] else []
            yield from (".".join([*base, name]) for name in names or [""])


def own_module(name: str) -> str | None:
    """The file of this package that a dotted name stands for; None for other packages."""
    parts = name.strip(".").split(".")
    if parts[0] != "autoip":
        return None
    known = len(parts) > 1 and (parts[1] in LEVEL or parts[1].startswith("_"))
    is_dunder = len(parts) > 1 and parts[1] == "__version__"
    return parts[1] if known and not is_dunder else "__init__"


def violations(package: Path) -> list[str]:
    """What breaks the rules in the package in that folder, one line each."""
    found: list[str] = []
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        if name not in LEVEL:
            found.append(f"{name}: has no level")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for full in imported(tree):
            found += (f"{name}: {fault}" for fault in faults(name, full.strip(".")))
        if LEVEL[name] <= CORE:
            calls = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            found += (f"{name}: uses {call}()" for call in sorted(calls & IMPURE_BUILTINS))
    return found


def faults(name: str, full: str) -> Iterator[str]:
    """What is wrong with file `name` importing `full`."""
    for owned, owner in SOLE_IMPORTER.items():
        if (full == owned or full.startswith(owned + ".")) and name != owner:
            yield f"imports {full}, which is for {owner} alone"
    module = own_module(full)
    if module is None:
        if LEVEL[name] <= CORE and full.split(".", maxsplit=1)[0] not in PURE:
            yield f"imports {full}, and the core does no input or output"
    elif module in LEVEL and LEVEL[module] >= LEVEL[name]:
        yield f"imports {module}, which is not on a lower level"


def test_the_package_keeps_its_layers() -> None:
    assert violations(PACKAGE) == []


def test_every_level_is_of_a_file() -> None:
    assert sorted(LEVEL) == sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("acd", "from autoip.ipv4ll import Ipv4ll", "imports ipv4ll, which"),
        ("acd", "from autoip import ipv4ll", "imports ipv4ll, which"),
        ("acd", "import autoip.ipv4ll", "imports ipv4ll, which"),
        ("acd", "from .ipv4ll import Ipv4ll", "imports ipv4ll, which"),
        ("acd", "from . import ipv4ll", "imports ipv4ll, which"),
        ("acd", "def f() -> None:\n    from autoip import ipv4ll", "imports ipv4ll, which"),
        ("constants", "from autoip import errors", "imports errors, which"),
        ("store", "from autoip.netlink import Link", "imports netlink, which"),
        ("netlink", "from autoip import store", "imports store, which"),
        ("rtnl", "from autoip.netlink import Netlink", "imports netlink, which"),
        ("links", "import socket", "imports socket, and"),
        ("arp", "import socket", "imports socket, and"),
        ("acd", "import time", "imports time, and"),
        ("ipv4ll", "from asyncio import sleep", "imports asyncio, and"),
        ("errors", "import os.path", "imports os.path, and"),
        ("acd", "import logging, enum", "imports logging, and"),
        ("acd", "open('/etc/hosts')", "uses open()"),
        ("acd", "print(1)", "uses print()"),
        ("ipv4ll", "__import__('os')", "uses __import__()"),
        ("daemon", "from autoip import _arpsock", "imports autoip._arpsock, which"),
        ("netlink", "from autoip._arpsock import lib", "imports autoip._arpsock, which"),
        ("cli", "import autoip._privileges", "imports autoip._privileges, which"),
        ("daemon", "import pyroute2", "imports pyroute2, which"),
        ("netlink", "import pyroute2", "imports pyroute2, which"),
        ("store", "from pyroute2.netlink import nlmsg", "imports pyroute2.netlink, which"),
        ("novel", "", "has no level"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, source: str, fault: str) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{name}: {fault}")


def test_a_package_inside_the_package_has_no_level(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "acd.py").touch()
    assert violations(tmp_path) == ["deep.acd: has no level"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("acd", "from autoip.arp import ArpPacket\nfrom autoip import constants"),
        ("ipv4ll", "from random import Random\nfrom collections.abc import Callable"),
        ("arpsock", "from autoip._arpsock import ffi, lib\nimport socket"),
        ("rtnl", "from pyroute2 import AsyncIPRoute"),
        ("netlink", "from autoip import rtnl, source_rule"),
        ("cli", "from autoip import __version__, daemon\nimport autoip"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, name: str, source: str) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    assert violations(tmp_path) == []
