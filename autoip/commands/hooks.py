"""The command `hooks`: what makes DHCP clients start and stop autoip is installed, listed, taken away.

Everything is looked at before anything is written, and what is written comes into its place at the
end, together. What cannot be seen later, which directories and links we made, is noted in a file
beside the shared script.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass

from autoip.commands.arguments import aligned, texts, values
from autoip.dhcp.clients import CLIENTS, MARK, SHARED, Client, File, Needs
from autoip.dhcp.image import Change, NotAFile, Rooted
from autoip.errors import AutoipError, UsageError
from autoip.option_table import Option, interface_name

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Sequence

_SOURCES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "dhcp", "hookfiles")
_SHARED = File("hook", SHARED, 0o755)
_FOLDER = os.path.dirname(SHARED)
_NOTES = f"{_FOLDER}/made"
_RUN = "/run/autoip-hooks"
_UNITS = tuple(
    f"{place}/systemd/system/autoip@.service"
    for place in ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
)
_WANTS = "/etc/systemd/system/multi-user.target.wants"
_STOP_TIME = 120


class NotOurs(AutoipError):
    """A file of somebody else is where ours would be."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that has been checked."""

    action: str
    interfaces: tuple[str, ...]
    clients: tuple[str, ...]
    """Empty: as the action has it."""
    root: str
    conf: bool
    program: str | None


def _absolute(text: str) -> str:
    if not os.path.isabs(text):
        raise UsageError("not an absolute path")
    return text


# fmt: off
OPTIONS = (
    Option(
        "client", "NAME", "this client, also if it is not installed; default: all that are",
        "May be given more than once.",
        values=CLIENTS, into="clients", repeat="all",
    ),
    Option(
        "root", "DIR", "an image that is being built; default: /",
        default="/", repeat="last", offers="folders",
    ),
    Option(
        "no-conf", "", "install: leave the client's configuration alone",
        read="no".__eq__, into="conf",
    ),
    Option(
        "program", "PATH", "install: the program that the hooks start; default: the one that runs",
        read=_absolute, repeat="last", offers="files",
    ),
    Option("action", "ACTION", "what to do", values=["install", "remove", "list"], operand=True),
    Option(
        "interfaces", "IFACE", "install: for clients that are told names",
        read=interface_name, repeat="all", operand=True, offers="interfaces",
    ),
)
# fmt: on


def parse(words: Sequence[str]) -> Arguments:
    """Read a command line.

    Raises:
        UsageError: with what was wrong and what is allowed.
    """
    found = values(OPTIONS, texts("hooks", OPTIONS, words, epilog="clients: " + ", ".join(CLIENTS)))
    only = found["interfaces"] or not found["conf"] or found["program"]
    if only and found["action"] != "install":
        raise UsageError(f"hooks {found['action']} takes no IFACE, --no-conf and --program")
    return Arguments(**found)


def main(words: Sequence[str]) -> int:
    """Do it and say what was done, one line each; 0.

    Raises:
        NotOurs: a file of somebody else is in the way; nothing was changed.
        AutoipError: the kernel refused something.
    """
    arguments = parse(words)
    with Rooted(arguments.root) as tree:
        match arguments.action:
            case "install":
                install(tree, arguments)
            case "remove":
                remove(tree, arguments)
            case _:
                show(tree, arguments)
    return 0


# --- install -------------------------------------------------------------------------------------


def install(tree: Rooted, arguments: Arguments) -> None:
    """Put the files of the clients in their places."""
    chosen = _chosen(tree, arguments.clients)
    if arguments.interfaces and not any(client.takes_names for client in chosen.values()):
        takers = [name for name, client in CLIENTS.items() if client.takes_names]
        raise UsageError(
            f"{' '.join(arguments.interfaces)}: none of {', '.join(chosen)} is told names"
            + (f" (but {', '.join(takers)})" if takers else "")
        )
    program = arguments.program or _program()
    wanted = {_SHARED.path: (_source(_SHARED, program), _SHARED.mode)}
    kept = {}
    for client in chosen.values():
        for file in client.files:
            wanted[file.path] = _source(file, program), file.mode
            if file.keeps and _to_keep(tree, file):
                kept[file.path] = file.keeps
        for conf in client.confs if arguments.conf and arguments.interfaces else ():
            wanted[conf.path] = conf.text(arguments.interfaces).encode(), conf.mode
    stale = {
        path
        for path, (text, mode) in wanted.items()
        if path in kept or _differs(tree, path, text, mode)
    }
    links = {}
    if any(client.enables for client in chosen.values()):
        links = _links(tree, arguments.interfaces)
    with Change(tree) as change:
        for path in sorted(stale):
            change.write(path, *wanted[path])
            if path in kept and not tree.same(path, kept[path]):
                change.keep(path, kept[path])
        for path, target in links.items():
            change.link(path, target)
        before = _notes(tree)
        notes = before | _noted("directory", change.made) | _noted("link", links)
        if notes != before:
            change.write(_NOTES, _written(notes), 0o644)
        change.commit()
    for path in wanted:
        _say("wrote" if path in stale else "unchanged", tree.shown(path))
        if path in kept:
            _say("kept", f"{tree.shown(kept[path])}: what was there before, which ours calls")
    for path in links:
        _say("enabled", tree.shown(path))
    if not tree.exists(program):
        _say("note:", f"{tree.shown(program)} is not there yet")
    for name, client in chosen.items():
        if client.needs is not None and not _says(tree, client.needs):
            needs = client.needs
            _say("note:", f"{name}: {tree.shown(needs.path)} has to say {needs.word}")
        for conf in client.confs if arguments.conf and not arguments.interfaces else ():
            _say("note:", f"{name}: no interface was named, so {conf.path} was not written")


def _to_keep(tree: Rooted, file: File) -> bool:
    """Whether the file that ours is to call is still in our place.

    Raises:
        NotOurs: it cannot be told which of two is to be called, or there is none.
    """
    path, name = tree.shown(file.path), tree.shown(file.keeps)
    if tree.same(file.path, file.keeps):
        return True  # an earlier run was interrupted
    kept = tree.is_file(file.keeps)
    if _is_ours(tree, file.path) or (kept and not tree.is_file(file.path)):
        if not kept:
            raise NotOurs(f"{name}: is gone, and {path} would call it: nothing was changed")
        return False
    if kept:
        raise NotOurs(f"{path}: is not autoip's, and {name} is there as well: remove one of them")
    if not tree.is_file(file.path):
        raise NotOurs(f"{path}: is not there, and ours would call it: install the client first")
    return True


def _chosen(tree: Rooted, names: Sequence[str]) -> dict[str, Client]:
    """The clients that are named, or all that are installed."""
    if names:
        return {name: CLIENTS[name] for name in names}
    found = {name: client for name, client in CLIENTS.items() if _present(tree, client)}
    if not found:
        known = ", ".join(CLIENTS)
        raise AutoipError(f"no DHCP client is installed; --client names one of {known}")
    return found


def _present(tree: Rooted, client: Client) -> bool:
    return any(tree.exists(program) for program in client.programs)


def _source(file: File, program: str) -> bytes:
    with open(os.path.join(_SOURCES, file.source), encoding="utf-8") as source:
        return source.read().replace("@AUTOIP@", shlex.quote(program)).encode()


def _says(tree: Rooted, needs: Needs) -> bool:
    lines = (tree.read(needs.path) or b"").splitlines()
    return any(line.split()[:1] == [needs.word.encode()] for line in lines)


def _program() -> str:
    """The path by which this very autoip can be started from anywhere.

    That is how it was started; or, for `PYTHON -m autoip`, the script that was installed together with
    the package, which is beside that Python also if the package is a source tree.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "autoip")
    for path in (os.path.abspath(sys.argv[0]), beside):
        if os.path.basename(path) == "autoip" and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError("this autoip is not installed; --program PATH says which one to start")


def _differs(tree: Rooted, path: str, text: bytes, mode: int) -> bool:
    """Whether the file is missing or another one of ours."""
    there = _ours(tree, path)
    return there != text or not tree.has_mode(path, mode)


def _ours(tree: Rooted, path: str) -> bytes | None:
    """Our file's content; None if there is none.

    Raises:
        NotOurs: it is somebody else's.
    """
    advice = "nothing was changed; move it away, or name other clients with --client"
    try:
        there = tree.read(path)
    except NotAFile as error:
        raise NotOurs(f"{error} and not autoip's: {advice}") from error
    if there is not None and MARK not in there:
        raise NotOurs(f"{tree.shown(path)}: is there and not autoip's: {advice}")
    return there


def _links(tree: Rooted, interfaces: Iterable[str]) -> dict[str, str]:
    """The links that enable the unit for these interfaces, those that are there left out."""
    unit = next((path for path in _UNITS if tree.exists(path)), None)
    wanted = {f"{_WANTS}/autoip@{name}.service": unit for name in interfaces}
    if unit is None:
        for path in wanted:
            _say(
                "note:", f"{os.path.basename(path)} was not enabled: {tree.root or '/'} has no unit"
            )
        return {}
    return {path: unit for path in wanted if tree.link(path) is None}


# --- what we made, beside files --------------------------------------------------------------------


def _noted(kind: str, paths: Iterable[str]) -> dict[str, str]:
    return {path: kind for path in paths if path != _FOLDER}


def _notes(tree: Rooted) -> dict[str, str]:
    """Path and kind, `directory` or `link`, of what earlier runs made."""
    lines = (_ours(tree, _NOTES) or b"").decode(errors="surrogateescape").splitlines()
    pairs = (line.partition(" ") for line in lines if not line.startswith("#"))
    return {path: kind for kind, _, path in pairs if path.startswith("/")}


def _written(notes: dict[str, str]) -> bytes:
    text = "".join(f"{kind} {path}\n" for path, kind in sorted(notes.items()))
    head = b"# What was made besides files, and is taken away with them."
    return head + MARK + text.encode(errors="surrogateescape")


# --- remove ----------------------------------------------------------------------------------------


def remove(tree: Rooted, arguments: Arguments) -> None:
    """Take away what `install` has put there, and nothing else."""
    names = arguments.clients or tuple(CLIENTS)
    notes = _notes(tree)
    for name in names:
        kept = {file.path: file.keeps for file in CLIENTS[name].files if file.keeps}
        for path in CLIENTS[name].paths:
            if path in kept:
                _put_back(tree, path, kept[path])
            else:
                _remove(tree, path)
    if any(CLIENTS[name].enables for name in names):
        for path in [path for path, kind in notes.items() if kind == "link"]:
            if tree.link(path) in _UNITS:
                tree.unlink(path)
                _say("removed", tree.shown(path))
            del notes[path]
    last = not any(_is_ours(tree, path) for client in CLIENTS.values() for path in client.paths)
    if last:
        if not tree.root and _is_ours(tree, SHARED):
            _end_daemons()
        _remove(tree, SHARED)
    for path in sorted((path for path, kind in notes.items() if kind == "directory"), reverse=True):
        if tree.rmdir(path):
            del notes[path]
    if last or not notes:
        if _is_ours(tree, _NOTES):
            tree.unlink(_NOTES)
    else:
        with Change(tree) as change:
            change.write(_NOTES, _written(notes), 0o644)
            change.commit()
    tree.rmdir(_FOLDER)


def _remove(tree: Rooted, path: str) -> None:
    try:
        if _ours(tree, path) is None:
            return
    except NotOurs:
        _say("left", f"{tree.shown(path)}: not autoip's")
        return
    tree.unlink(path)
    _say("removed", tree.shown(path))


def _put_back(tree: Rooted, path: str, name: str) -> None:
    """What was at the path before ours goes there again."""
    if not tree.is_file(name):
        if _is_ours(tree, path):
            _remove(tree, path)
    elif _is_ours(tree, path) or not tree.is_file(path):
        tree.replace(path, by=name)
        _say("restored", tree.shown(path))
    elif tree.same(path, name):
        tree.unlink(name)
    else:
        _say("left", f"{tree.shown(name)}: {tree.shown(path)} is newer, and not autoip's")


def _is_ours(tree: Rooted, path: str) -> bool:
    with contextlib.suppress(NotOurs):
        return _ours(tree, path) is not None
    return False


def _end_daemons() -> None:
    """Stop what hooks have started in this network namespace, and nobody would stop from now on."""
    space = f"{os.stat('/proc/self/ns/net').st_ino}-"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        files = [name for name in os.listdir(_RUN) if name.startswith((space, "unit-"))]
        for name in sorted(files):
            if name.startswith(space) and name.endswith(".wanted"):
                interface = name.removeprefix(space).removesuffix(".wanted")
                command = ["/bin/sh", SHARED, "work", interface, "stop"]
                subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_STOP_TIME, check=False)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(_RUN, name))
        os.rmdir(_RUN)


# --- list ------------------------------------------------------------------------------------------


def show(tree: Rooted, arguments: Arguments) -> None:
    """A line for each client: whether it is there, and its hooks."""
    rows = [("CLIENT", "PRESENT", "HOOKS", "FILES")]
    for name in arguments.clients or CLIENTS:
        client = CLIENTS[name]
        present = "yes" if _present(tree, client) else "no"
        rows.append((name, present, _state(tree, client), " ".join(client.paths)))
    print("\n".join(aligned(rows)))


def _state(tree: Rooted, client: Client) -> str:
    """`no`, `installed`, or `partly`; `foreign` if a file of somebody else is in the place of ours."""
    found = []
    for file in client.files:
        try:
            found.append(_ours(tree, file.path) is not None)
        except NotOurs:
            if not file.keeps:
                return "foreign"
            found.append(False)
    return "installed" if all(found) else "partly" if any(found) else "no"


def _say(what: str, about: str) -> None:
    print(f"{what} {about}")
