"""The installer of the DHCP clients' hooks: install, remove, list.

Everything is checked before anything is written, and what is written comes into its place at the end,
together. Which directories and links we made cannot be seen later, so it is noted in a file beside the
shared script.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess

from autoip.dhcp.clients import CLIENTS, MARK, SHARED, File
from autoip.errors import AutoipError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from autoip.dhcp.image import Entry, Found, Image

_SOURCES = os.path.join(os.path.dirname(__file__), "hookfiles")
_FOLDER = os.path.dirname(SHARED)
_NOTES = f"{_FOLDER}/made"
_NOTES_HEAD = b"# What was made besides files, and is taken away with them." + MARK
_RUN = "/run/autoip-hooks"
_UNIT_FOLDERS = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
_UNITS = tuple(f"{folder}/systemd/system/autoip@.service" for folder in _UNIT_FOLDERS)
_WANTS = "/etc/systemd/system/multi-user.target.wants"
_STOP_TIME = 120
"""Seconds that a daemon may take to end."""


class NotOurs(AutoipError):
    """A file of somebody else is where ours would be."""


def install(
    image: Image, names: Sequence[str], interfaces: Sequence[str], program: str, *, conf: bool
) -> Iterator[str]:
    """Put the hooks of DHCP clients in their places; yield a line for each thing that was done.

    Args:
        image: where.
        names: of CLIENTS; none: those that are installed.
        interfaces: names for the DHCP clients that need them.
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
        what = f"none of {', '.join(chosen)} is told names (but {needing})"
        raise UsageError(f"{' '.join(interfaces)}: {what}")
    files = [File("hook", SHARED), *(file for client in chosen.values() for file in client.files)]
    keeps = {file.path: file.keeps for file in files if file.keeps and _must_keep(image, file)}
    wanted = {file.path: (_content(file, program), file.mode) for file in files}
    for client in chosen.values() if conf and interfaces else ():
        wanted |= {path: (text(interfaces).encode(), 0o644) for path, text in client.confs.items()}
    stale = {
        path: entry
        for path, entry in wanted.items()
        if path in keeps or not _is_there(image, path, *entry)
    }
    unit = next((path for path in _UNITS if image.exists(path)), None)
    paths = [f"{_WANTS}/autoip@{name}.service" for name in interfaces]
    links = {path: unit for path in paths if unit is not None and image.at(path) is None}
    _put(image, {**stale, **links}, keeps)
    for path in wanted:
        yield f"{'wrote' if path in stale else 'unchanged'} {image.full(path)}"
        if path in keeps:
            yield f"kept {image.full(keeps[path])}: what was there before, which ours calls"
    yield from (f"enabled {image.full(path)}" for path in links)
    for name in interfaces if unit is None else ():
        yield f"note: autoip@{name}.service was not enabled: {image.root or '/'} has no unit"
    if not image.exists(program):
        yield f"note: {image.full(program)} is not there yet"
    for name, client in chosen.items():
        if client.needs is not None and not _has_line(image, *client.needs):
            path, word = client.needs
            yield f"note: {name}: {image.full(path)} has to say {word}"
        for path in client.confs if conf and not interfaces else ():
            yield f"note: {name}: no interface was named, so {path} was not written"


def remove(image: Image, names: Sequence[str], namespace: int | None) -> Iterator[str]:
    """Remove what `install` has put there, and nothing else; yield a line for each thing that was done.

    Args:
        image: where.
        names: of CLIENTS; none: all.
        namespace: inode of the network namespace in which the daemons that hooks have started end with
            the last hook; None: daemons are left alone.

    Raises:
        AutoipError: the kernel refused something.
    """
    notes = _notes(image)
    for client in (CLIENTS[name] for name in names or CLIENTS):
        for file in client.files:
            yield from _put_back(image, file) if file.keeps else _remove(image, file.path)
        for path in client.confs:
            yield from _remove(image, path)
        links = set(filter(_is_link, notes)) if client.confs else set()
        notes -= links
        for path in sorted(links):
            if (found := image.at(path)) is not None and found.target in _UNITS:
                image.unlink(path)
                yield f"removed {image.full(path)}"
    last = not any(is_ours(image, path) for client in CLIENTS.values() for path in client.paths)
    if last:
        if namespace is not None and is_ours(image, SHARED):
            _end_daemons(namespace)
        yield from _remove(image, SHARED)
    for path in sorted(notes, reverse=True):
        image.rmdir(path)
    notes = {path for path in notes if image.at(path) is not None}
    if notes and not last:
        image.put({_NOTES: _written(notes)}, {})
    elif is_ours(image, _NOTES):
        image.unlink(_NOTES)
    image.rmdir(_FOLDER)


def present(image: Image, name: str) -> bool:
    """Return whether a DHCP client is installed."""
    return any(image.exists(program) for program in CLIENTS[name].programs)


def state(image: Image, name: str) -> str:
    """Return how a DHCP client's hooks stand.

    Returns:
        `no`, `installed` or `partly`; `foreign` if a file of somebody else is in the place of ours.
    """
    files = CLIENTS[name].files
    ours = {file: is_ours(image, file.path) for file in files}
    if any(not ours[file] and not file.keeps and image.at(file.path) for file in files):
        return "foreign"
    return "installed" if all(ours.values()) else "partly" if any(ours.values()) else "no"


def is_ours(image: Image, path: str) -> bool:
    """Return whether a file of ours is there."""
    found = image.at(path)
    return found is not None and MARK in (found.content or b"")


def program(image: Image) -> str:
    """Return the program that the hooks start; empty if their script is not there or does not name one."""
    found = image.at(SHARED)
    for line in ((found and found.content) or b"").decode(errors="surrogateescape").splitlines():
        if line.startswith("AUTOIP="):
            with contextlib.suppress(ValueError):  # an open quotation
                return "".join(shlex.split(line.removeprefix("AUTOIP="))[:1])
    return ""


# --- files -----------------------------------------------------------------------------------------


def _ours(image: Image, path: str) -> Found | None:
    """Return our file; None if there is none.

    Raises:
        NotOurs: it is somebody else's.
    """
    found = image.at(path)
    if found is not None and not is_ours(image, path):
        what = "there" if found.content is not None else "no regular file"
        raise NotOurs(
            f"{image.full(path)}: is {'a symbolic link' if found.target else what} and not autoip's:"
            " nothing was changed; move it away, or name other clients with --client"
        )
    return found


def _must_keep(image: Image, file: File) -> bool:
    """Return whether what our file will call is still in its place.

    Raises:
        NotOurs: it is not clear which of two files ours must call, or there is none.
    """
    path, name = image.full(file.path), image.full(file.keeps)
    there, kept = image.at(file.path), image.at(file.keeps)
    if there is None or not there.is_file:
        if kept is None:
            raise NotOurs(f"{path}: is not there, and ours would call it: install the client first")
        return False
    if is_ours(image, file.path):
        if kept is None:
            raise NotOurs(f"{name}: is gone, and {path} would call it: nothing was changed")
        return False
    if kept is not None and not os.path.samestat(there.status, kept.status):
        raise NotOurs(f"{path}: is not autoip's, and {name} is there as well: remove one of them")
    return True  # also if both are one file, since an earlier run was interrupted


def _content(file: File, program: str) -> bytes:
    with open(os.path.join(_SOURCES, file.source), encoding="utf-8") as source:
        return source.read().replace("@AUTOIP@", shlex.quote(program)).encode()


def _is_there(image: Image, path: str, content: bytes, mode: int) -> bool:
    """Return whether our file is there, and is this one; NotOurs if somebody else's is."""
    found = _ours(image, path)
    return found is not None and found.equals(content, mode)


def _has_line(image: Image, path: str, word: str) -> bool:
    """Return whether a line of the file begins with the word."""
    found = image.at(path)
    lines = ((found and found.content) or b"").splitlines()
    return any(line.split()[:1] == [word.encode()] for line in lines)


def _put(image: Image, entries: Mapping[str, Entry], keeps: Mapping[str, str]) -> None:
    """Put all in its place, together with the notes of what was made besides files."""
    before = _notes(image)
    notes = before.union(filter(_is_link, entries), image.missing(entries)) - {_FOLDER}
    noted = {_NOTES: _written(notes)} if notes != before else {}
    keep = {path: kept for path, kept in keeps.items() if image.at(kept) is None}
    image.put({**entries, **noted}, keep)


def _notes(image: Image) -> set[str]:
    """Return the directories and links that earlier runs made."""
    found = _ours(image, _NOTES)
    text = ((found and found.content) or b"").decode(errors="surrogateescape")
    paths = (line.partition(" ")[2] for line in text.splitlines())
    return {path for path in paths if path.startswith("/")}


def _written(notes: Iterable[str]) -> tuple[bytes, int]:
    """Return the file of the notes: content and permissions."""
    kinds = ((path, "link" if _is_link(path) else "directory") for path in sorted(notes))
    text = "".join(f"{kind} {path}\n" for path, kind in kinds)
    return _NOTES_HEAD + text.encode(errors="surrogateescape"), 0o644


def _is_link(path: str) -> bool:
    return path.startswith(f"{_WANTS}/")


def _remove(image: Image, path: str) -> Iterator[str]:
    if is_ours(image, path):
        image.unlink(path)
        yield f"removed {image.full(path)}"
    elif image.at(path) is not None:
        yield f"left {image.full(path)}: not autoip's"


def _put_back(image: Image, file: File) -> Iterator[str]:
    """Put what was in our file's place before there again."""
    path, name = file.path, file.keeps
    ours, there, kept = is_ours(image, path), image.at(path), image.at(name)
    if kept is None or not kept.is_file:
        yield from _remove(image, path) if ours else ()
    elif ours or there is None:
        image.replace(path, by=name)
        yield f"restored {image.full(path)}"
    elif os.path.samestat(there.status, kept.status):
        image.unlink(name)
    else:
        yield f"left {image.full(name)}: {image.full(path)} is newer, and not autoip's"


def _end_daemons(namespace: int) -> None:
    """Stop what hooks have started in this network namespace, and nobody would stop from now on."""
    space = f"{namespace}-"
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
