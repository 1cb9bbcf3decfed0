"""The installer of the DHCP clients' hooks: install, remove, list.

Everything is checked before anything is written, and all files come into their places together, at the
end. A file beside the shared script lists the directories and links that `install` made, which nothing
else shows later. It is written first, so that the next `install` completes, and the next `remove` undoes, what a
process that was killed has left.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from pathlib import Path

from autoip.dhcp import running
from autoip.dhcp.clients import CLIENTS, MARK, POLICY, SHARED, DhcpClient, File, named
from autoip.dhcp.image import Found
from autoip.errors import AutoipError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from autoip.dhcp.image import Entry, Image

_SOURCES = os.path.join(os.path.dirname(__file__), "hookfiles")
_FOLDER = os.path.dirname(SHARED)
_NOTES = f"{_FOLDER}/made"
_NOTES_HEAD = b"# What was made besides files, and is taken away with them." + MARK
_RUN = "/run/autoip-hooks"
_UNIT_FOLDERS = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
_UNITS = tuple(f"{folder}/systemd/system" for folder in _UNIT_FOLDERS)
"""Where our units may be."""
_WANTS = "/etc/systemd/system/multi-user.target.wants"
_AVAHI_HOOKS = (
    "/etc/dhcp/dhclient-exit-hooks.d/zzz_avahi-autoipd",
    "/etc/network/if-up.d/avahi-autoipd",
)
"""What Debian's avahi-autoipd starts its daemon with."""
_STOP_TIME = 120
"""Seconds that a daemon may take to end."""


class NotOurs(AutoipError):
    """A file of somebody else is where ours would be."""


def install(
    image: Image, names: Sequence[str], interfaces: Sequence[str], program: str, *, conf: bool
) -> Iterator[str]:
    """Put the hooks of DHCP clients in their places; yield a line for each thing that was done.

    Args:
        image: the root.
        names: of CLIENTS; empty: all that are installed.
        interfaces: names and patterns for the DHCP clients that need them, beside those of earlier runs.
        program: the path by which hooks start autoip.
        conf: whether to write the DHCP clients' configuration.

    Raises:
        UsageError: no DHCP client needs the names.
        NotOurs: a file of somebody else is in the way; nothing was changed.
        AutoipError: there is no DHCP client, or the kernel refused something.
    """
    chosen = {name: CLIENTS[name] for name in names or CLIENTS if names or present(image, name)}
    if not chosen:
        known = ", ".join(CLIENTS)
        raise AutoipError(f"no DHCP client is installed; --client names one of {known}")
    if interfaces and not any(client.confs for client in chosen.values()):
        needing = ", ".join(name for name, client in CLIENTS.items() if client.confs)
        what = f"none of {', '.join(chosen)} is told names (but {needing}); leave them out"
        raise UsageError(f"{' '.join(interfaces)}: {what}")
    files = [File("hook", SHARED), *(file for client in chosen.values() for file in client.files)]
    wanted = {file.path: (_content(file, program), file.mode) for file in files}
    everyone = tuple(dict.fromkeys([*named_before(image), *interfaces]))
    for client in chosen.values() if conf and interfaces else ():
        wanted |= {path: (text(everyone).encode(), 0o644) for path, text in client.confs.items()}
    keeps = {file.path: file.keeps for file in files if file.keeps and _must_keep(image, file)}
    stale: dict[str, Entry] = {
        path: entry
        for path, entry in wanted.items()
        if path in keeps or not _ours(image, path).equals(*entry)
    }
    units = {
        name: next(filter(image.exists, _templates(name)), "")
        for name in dict.fromkeys(map(running.unit, interfaces))
    }
    links = {f"{_WANTS}/{name}": path for name, path in units.items() if path}
    links = {path: unit for path, unit in links.items() if not image.at(path)}
    _tidy(image)
    _put(image, {**stale, **links}, keeps)
    for path in wanted:
        yield f"{'wrote' if path in stale else 'unchanged'} {image.full(path)}"
        if path in keeps:
            yield f"kept {image.full(keeps[path])}: what was there before, which ours calls"
    yield from (f"enabled {image.full(path)}" for path in links)
    for name in (name for name, path in units.items() if not path):
        yield f"note: {name} was not enabled: {image.root or '/'} has no unit"
    if not image.exists(program):
        yield f"note: {image.full(program)} is not there yet"
    for name, client in chosen.items():
        if missing := missing_word(image, client):
            yield f"note: {name}: {missing}"
        for path in client.confs if conf and not interfaces else ():
            yield f"note: {name}: no interface was named, so {path} was not written"
    for path in filter(image.exists, _AVAHI_HOOKS):
        yield f"note: {image.full(path)} starts avahi-autoipd as well: remove one of the two"


def remove(image: Image, names: Sequence[str], namespace: int | None) -> Iterator[str]:
    """Remove what `install` has put there, and nothing else; yield a line for each thing that was done.

    Args:
        image: the root.
        names: of CLIENTS; empty: all.
        namespace: inode of a network namespace: the services that are disabled are stopped, and with the last
            hook the daemons that hooks have started in it; None: daemons are left alone.

    Raises:
        AutoipError: the kernel refused something.
    """
    _tidy(image)
    notes = _notes(image)
    for client in (CLIENTS[name] for name in names or CLIENTS):
        for file in client.files:
            yield from _remove(image, file.path, file.keeps)
        confs = [line for path in client.confs for line in _remove(image, path)]
        yield from confs
        stopped = []
        for path in sorted(filter(_is_link, notes)) if client.confs else ():
            notes.remove(path)
            name = os.path.basename(path)
            if image.at(path).target in _templates(name):
                image.unlink(path)
                yield f"removed {image.full(path)}"
                stopped.append(name)
        if (confs or stopped) and namespace is not None:
            yield from running.reload_networkmanager()
            yield from running.stop(stopped)
    last = not any(image.at(path).is_ours for client in CLIENTS.values() for path in client.paths)
    if last:
        if namespace is not None and image.at(SHARED).is_ours:
            _end_daemons(namespace)
        yield from _remove(image, SHARED)
    for path in sorted(notes, reverse=True):
        image.rmdir(path)
    _note(image, set() if last else set(filter(image.at, notes)))


def present(image: Image, name: str) -> bool:
    """Return whether a DHCP client is installed."""
    return any(image.exists(program) for program in CLIENTS[name].programs)


def is_enabled(image: Image, unit: str) -> bool:
    """Return whether a unit is enabled."""
    return bool(image.at(f"{_WANTS}/{unit}"))


def named_before(image: Image) -> list[str]:
    """Return the names and patterns that earlier runs of `install` were given."""
    found = image.at(POLICY)
    return named(found.content.decode(errors="surrogateescape")) if found.is_ours else []


def missing_word(image: Image, client: DhcpClient) -> str:
    """Return what the DHCP client's configuration has to say for its hook to do anything; empty if it does."""
    if client.needs is None or _has_line(image, *client.needs):
        return ""
    path, word = client.needs
    return f"{image.full(path)} has to say {word}"


def state(image: Image, name: str) -> str:
    """Return `no`, `installed`, `partly`, or `foreign`: a file of somebody else is in the place of a hook."""
    there = {file: image.at(file.path) for file in CLIENTS[name].files}
    ours = [found.is_ours for found in there.values()]
    if any(found and not found.is_ours and not file.keeps for file, found in there.items()):
        return "foreign"
    return "installed" if all(ours) else "partly" if any(ours) else "no"


def program(image: Image) -> str:
    """Return the program that the hooks start; empty if their script is not there or does not name one."""
    for line in image.at(SHARED).content.decode(errors="surrogateescape").splitlines():
        if line.startswith("AUTOIP="):
            with contextlib.suppress(ValueError):  # an open quotation
                return "".join(shlex.split(line.removeprefix("AUTOIP="))[:1])
    return ""


# --- files -----------------------------------------------------------------------------------------


def _ours(image: Image, path: str) -> Found:
    """Return our file, or nothing.

    Raises:
        NotOurs: it is somebody else's.
    """
    found = image.at(path)
    if found and not found.is_ours:
        what = (
            "a symbolic link" if found.target else "there" if found.is_file else "no regular file"
        )
        raise NotOurs(
            f"{image.full(path)}: is {what} and not autoip's: nothing was changed;"
            " move it away, or name other clients with --client"
        )
    return found


def _must_keep(image: Image, file: File) -> bool:
    """Return whether the file that our file will call is still in its place.

    Raises:
        NotOurs: it is not clear which of two files ours must call, or neither exists.
    """
    path, name = image.full(file.path), image.full(file.keeps)
    there, kept = image.at(file.path), image.at(file.keeps)
    foreign = there.is_file and not there.is_ours
    if not kept and not there.is_file:
        raise NotOurs(f"{path}: is not there, and ours would call it: install the client first")
    if not kept and there.is_ours:
        raise NotOurs(f"{name}: is gone, and {path} would call it: nothing was changed")
    # Both are one file if an earlier run was interrupted.
    if kept and foreign and not os.path.samestat(there.status, kept.status):
        raise NotOurs(f"{path}: is not autoip's, and {name} is there as well: remove one of them")
    return foreign


def _content(file: File, program: str) -> bytes:
    with open(os.path.join(_SOURCES, file.source), encoding="utf-8") as source:
        return source.read().replace("@AUTOIP@", shlex.quote(program)).encode()


def _has_line(image: Image, path: str, word: str) -> bool:
    """Return whether a line of the file begins with the word."""
    lines = image.at(path).content.splitlines()
    return any(line.split()[:1] == [word.encode()] for line in lines)


def _put(image: Image, entries: Mapping[str, Entry], keeps: Mapping[str, str]) -> None:
    """Put all in its place, but first the notes of what is made besides files."""
    before = _notes(image)
    notes = before.union(filter(_is_link, entries), image.missing(entries)) - {_FOLDER}
    keep = {path: kept for path, kept in keeps.items() if not image.at(kept)}
    if notes != before:
        image.put({_NOTES: _written(notes)}, {})
    try:
        image.put(entries, keep)
    except AutoipError:
        with contextlib.suppress(AutoipError):  # too many notes are harmless
            _note(image, before)
        raise


def _note(image: Image, notes: set[str]) -> None:
    """Write the notes, or remove the file if there are none."""
    if notes:
        image.put({_NOTES: _written(notes)}, {})
    elif image.at(_NOTES):
        image.unlink(_NOTES)
    image.rmdir(_FOLDER)


def _tidy(image: Image) -> None:
    """Remove the temporary files of a run that was killed."""
    paths = (path for client in CLIENTS.values() for path in client.paths)
    image.tidy([SHARED, _NOTES])  # before the notes are read
    image.tidy([*paths, *filter(_is_link, _notes(image))])


def _notes(image: Image) -> set[str]:
    """Return the directories and links that earlier runs made."""
    text = _ours(image, _NOTES).content.decode(errors="surrogateescape")
    paths = (line.partition(" ")[2] for line in text.splitlines())
    return {path for path in paths if path.startswith("/")}


def _written(notes: Iterable[str]) -> tuple[bytes, int]:
    """Return the file of the notes: content and permissions."""
    kinds = ((path, "link" if _is_link(path) else "directory") for path in sorted(notes))
    text = "".join(f"{kind} {path}\n" for path, kind in kinds)
    return _NOTES_HEAD + text.encode(errors="surrogateescape"), 0o644


def _templates(unit: str) -> list[str]:
    """Return the paths at which the file of a unit may be."""
    name, at, _ = unit.partition("@")
    return [f"{folder}/{name}@.service" if at else f"{folder}/{unit}" for folder in _UNITS]


def _is_link(path: str) -> bool:
    return path.startswith(f"{_WANTS}/")


def _remove(image: Image, path: str, keeps: str = "") -> Iterator[str]:
    """Remove our file, and put what it kept under the name `keeps` in its place again."""
    there, kept = image.at(path), image.at(keeps) if keeps else Found()
    if kept.is_file and (there.is_ours or not there):
        image.replace(path, by=keeps)
        yield f"restored {image.full(path)}"
    elif kept.is_file and os.path.samestat(there.status, kept.status):
        image.unlink(keeps)
    elif kept.is_file:
        yield f"left {image.full(keeps)}: {image.full(path)} is newer, and not autoip's"
    elif there.is_ours:
        image.unlink(path)
        yield f"removed {image.full(path)}"
    elif there and not keeps:
        yield f"left {image.full(path)}: not autoip's"


def _end_daemons(namespace: int) -> None:
    """Stop what hooks have started in this network namespace: no hook will stop it any more."""
    run = Path(_RUN)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        files = [*run.glob(f"{namespace}-*"), *run.glob("unit-*")]
        for path in sorted(run.glob(f"{namespace}-*.wanted")):
            interface = path.name.removeprefix(f"{namespace}-").removesuffix(".wanted")
            command = ["/bin/sh", SHARED, "work", interface, "stop"]
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_STOP_TIME, check=False)
        for path in files:
            path.unlink(missing_ok=True)
        run.rmdir()
