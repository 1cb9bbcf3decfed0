"""The commands that send requests to a running daemon: status, watch, wait, refresh, reload, stop, route.

They must start fast, so this module imports neither asyncio nor pyroute2 nor anything of the daemon.
"""

from __future__ import annotations

import contextlib
import json
import time
from fnmatch import fnmatchcase

from autoip.commands import arguments
from autoip.control.client import Connection, ask, checked, served
from autoip.control.protocol import VERSION, event
from autoip.errors import AutoipError, NotRunning, UsageError
from autoip.option_table import (
    SECONDS_MAX,
    Option,
    interface_name,
    is_pattern,
    one_interface_name,
    seconds,
)
from autoip.paths import runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

_ANSWER_TIME = 1.0  # seconds that a daemon may take for its first answer
_RETRY = 0.25  # seconds between two checks for a daemon that is not there

_EXIT_NOT_HELD = 1
_NEIGHBOURS_SHOWN = 8  # of an interface, by `status`; --json has all


def _link_local(text: str) -> str:
    import socket

    try:
        number = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        number = b""
    if number[:2] != b"\xa9\xfe":
        raise UsageError(f"{text}: not an IPv4 address in 169.254.0.0/16")
    return text


# fmt: off
_IFACE = Option(
    "interface", "IFACE", "the interface", read=one_interface_name, operand="1", offers="interfaces",
)
_IFACES = Option(
    "interfaces", "IFACE", "name, or pattern of those that are served; default: all that are",
    read=interface_name, repeat="all", operand="*", offers="interfaces",
)
OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "status": (arguments.json_option("one JSON object", "pretty"), _IFACES),
    "watch": (arguments.json_option("a JSON object for each event", "short"), _IFACES),
    "wait": (
        Option(
            "timeout", "S", f"give up after so many seconds, 0 to {SECONDS_MAX}; default: never",
            read=seconds, repeat="last",
        ),
        Option(
            "for", "KIND",
            "which address; `link-local`: autoip's (the default); `routable`: one that is routable; `any`: either",
            "See `[POLICY]` for what is routable.",
            values=("link-local", "routable", "any"), default="link-local", repeat="last",
        ),
        Option("any", "", "until one of the interfaces has it; default: until all have", into="one"),
        Option(
            "interfaces", "IFACE", "name, or pattern of those that are served; a pattern needs at least one",
            read=interface_name, repeat="all", operand="+", offers="interfaces",
        ),
    ),
    "refresh": (
        Option(
            "if-waiting", "", "only end the waiting of `--after`, since DHCP has failed", into="waiting",
        ),
        _IFACE,
    ),
    "reload": (_IFACES,),
    "stop": (
        Option(
            "leftovers", "",
            "remove only what a daemon that died has left on the interface; one that runs goes on",
        ),
        _IFACE,
    ),
    "route": (
        Option("address", "ADDRESS", "a link-local address", read=_link_local, operand="1"),
    ),
}
"""The options of each command."""
# fmt: on


def _parse(command: str, words: Sequence[str]) -> dict[str, Any]:
    options = OPTIONS[command]
    return arguments.values(options, arguments.texts(command, options, words))


def status(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the state of interfaces; return exit status 0 only if each holds an address."""
    found = _parse("status", words)
    directory = runtime_directory(environ)
    reports = [_report(directory, name) for name in _meant(directory, found["interfaces"])]
    if found["json"]:
        arguments.write(
            arguments.dumped({"version": VERSION, "interfaces": reports}, found["json"])
        )
    elif reports:
        arguments.write("\n".join(_table(reports)))
    if not reports and not found["interfaces"]:
        raise _NotHere("no autoip runs in this network namespace")
    for word in found["interfaces"]:
        if not any(_matches(report["interface"], word) for report in reports):
            raise _NotHere(f"{word}: no autoip runs here for an interface of such a name")
    if any(report["state"] == "not-running" for report in reports):
        return NotRunning.exit_status
    return 0 if all(report["address"] for report in reports) else _EXIT_NOT_HELD


def running(environ: Mapping[str, str]) -> bool:
    """Return whether a daemon serves an interface of this network namespace."""
    directory = runtime_directory(environ)
    return any(_report(directory, name)["state"] != "not-running" for name in served(directory))


def watch(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print events as they happen, until interrupted; wait for a daemon that is not there."""
    found = _parse("watch", words)
    for happened in _events(runtime_directory(environ), found["interfaces"], None):
        style = found["json"]
        arguments.write(arguments.dumped(happened, style) if style else _line(happened))
    return 0


def wait(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return 0 when the interfaces hold an address, or 1 when the time is over."""
    found = _parse("wait", words)
    wanted, one = found["interfaces"], found["one"]
    directory = runtime_directory(environ)
    # Addresses that are there already count, however short the time is.
    reports = {name: _report(directory, name) for name in _meant(directory, wanted)}
    if _arrived(reports, wanted, found["for"], one=one):
        return 0
    for happened in _events(directory, wanted, found["timeout"]):
        name = happened["interface"]
        # After each event the daemon is asked: what has happened since the event counts as well.
        gone = happened["event"] in ("lost", "stopped")
        reports[name] = _not_running(name) if gone else _report(directory, name)
        if _arrived(reports, wanted, found["for"], one=one):
            return 0
    missing = [word for word in wanted if not _running(reports, word)]
    if len(missing) == len(wanted) or (missing and not one):
        raise NotRunning(missing[0])
    return _EXIT_NOT_HELD


def _arrived(
    reports: Mapping[str, dict[str, Any]], wanted: Iterable[str], kind: str, *, one: bool
) -> bool:
    """Return whether all of the interfaces, or with `one` any of them, have an address of that kind."""
    found = []
    for word in wanted:
        held = [_has(report, kind) for name, report in _of(reports, word)]
        found.append(any(held) if one else bool(held) and all(held))
    return any(found) if one else all(found)


def _has(report: dict[str, Any], kind: str) -> bool:
    own, routable = bool(report["address"]), bool(report.get("routable"))
    return {"link-local": own, "routable": routable, "any": own or routable}[kind]


def _running(reports: Mapping[str, dict[str, Any]], word: str) -> bool:
    return any(report["state"] != "not-running" for _, report in _of(reports, word))


def _of(reports: Mapping[str, dict[str, Any]], word: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the reports that a name or a pattern means; a pattern means only interfaces that are served."""
    return [
        (name, report)
        for name, report in reports.items()
        if name == word or (_matches(name, word) and report["state"] != "not-running")
    ]


def _matches(name: str, word: str) -> bool:
    """Return whether a name or pattern means the interface of that name."""
    return name == word or (is_pattern(word) and fnmatchcase(name, word))


def _meant(directory: str, words: Sequence[str]) -> list[str]:
    """Return the interfaces that names and patterns mean; a pattern, or no word at all, means served ones."""
    if not words:
        return served(directory)
    found: list[str] = []
    for word in words:
        found += (
            [name for name in served(directory) if _matches(name, word)]
            if is_pattern(word)
            else [word]
        )
    return list(dict.fromkeys(found))


def reload(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Each daemon reads its configuration again, and goes on as the program that is there now; 0."""
    wanted = _parse("reload", words)["interfaces"]
    directory = runtime_directory(environ)
    names = _meant(directory, wanted)
    if not names:
        raise _NotHere("no autoip runs in this network namespace")
    done: set[int] = set()
    for name in names:
        pid = ask(directory, name, "status")["status"]["pid"]
        if pid not in done:
            ask(directory, name, "reload")
            done.add(pid)
    return 0


class _NotHere(AutoipError):
    exit_status = NotRunning.exit_status


def refresh(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Have the address probed again, or claimed at once; return 0."""
    found = _parse("refresh", words)
    request = "dhcp-failed" if found["waiting"] else "refresh"
    ask(runtime_directory(environ), found["interface"], request)
    return 0


def stop(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Stop the daemon of an interface, or remove what one that died has left; return 0."""
    found = _parse("stop", words)
    directory = runtime_directory(environ)
    if not found["leftovers"]:
        ask(directory, found["interface"], "stop")
        return 0
    from pathlib import Path

    from autoip.daemon import leftovers

    leftovers.remove(Path(directory), found["interface"])
    return 0


def route(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print by which interface a link-local address is reached, and why; return 0."""
    address = _parse("route", words)["address"]
    directory = runtime_directory(environ)
    reports = [_report(directory, name) for name in served(directory)]
    reports = [report for report in reports if report["state"] != "not-running"]
    if not reports:
        raise _NotHere("no autoip runs in this network namespace")
    source = _source(address)
    arguments.write(f"{address}: {_route(address, source, reports)}")
    return 0


def _source(address: str) -> str | None:
    """Return the address with which the kernel would send to `address` now; None: it would not."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect((address, 9))
        except OSError:
            return None
        found: str = unsent.getsockname()[0]
        return found


def _route(address: str, source: str | None, reports: Sequence[dict[str, Any]]) -> str:
    """Return by which interface an address is reached from `source`, and why."""
    if source is None:
        return "not reached: the kernel has no route to it"
    if source == address:
        return "this host itself"
    by = next((report for report in reports if source in _sources(report)), None)
    if by is None:
        return f"from {source}, which is not by an interface that autoip serves"
    line = f"by {by['interface']} from {source}: "
    for report in reports:
        for one in report.get("neighbours", ()):
            if one["address"] == address:
                mac = one["mac"] or "a host that has sent nothing since the last reload"
                line += f"{mac} on {report['interface']} has it"
                if (other := one["ambiguous"]) is not None:
                    line += f"; ambiguous: {other['mac']} on {other['interface']} has it as well"
                return line
    if sum(bool(_sources(report)) for report in reports) < 2:
        return line + "no other interface leads to 169.254.0.0/16"
    return line + "not known yet; if nobody has it there, the other interfaces are asked"


def _sources(report: dict[str, Any]) -> list[str]:
    """Return the addresses from which an interface reaches link-local destinations."""
    routable = [one.partition("/")[0] for one in report["routable"]]
    return routable + ([report["address"]] if report["address"] else [])


# --- answers of daemons --------------------------------------------------------------------------


def _report(directory: str, name: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = ask(directory, name, "status")["status"]
    except NotRunning:
        return _not_running(name)
    return report


def _not_running(name: str) -> dict[str, Any]:
    """Return the status object of an interface that no daemon serves."""
    return {"version": VERSION, "interface": name, "state": "not-running", "address": None}


def _events(
    directory: str, names: Sequence[str], timeout: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the events of the interfaces (see `_meant`) until the time is over; `timeout`: seconds."""
    import selectors

    deadline = None if timeout is None else time.monotonic() + timeout
    open_now: dict[str, Connection] = {}
    fixed = bool(names) and not any(map(is_pattern, names))
    alive: set[str] = set()  # interfaces whose daemon has answered, and has not sent `stopped`
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        stack.callback(_close, open_now)
        while True:
            meant = _meant(directory, names)
            for name in meant:
                if name not in open_now:
                    with contextlib.suppress(NotRunning):
                        open_now[name] = Connection(directory, name, "watch")
                        selector.register(open_now[name], selectors.EVENT_READ, name)
            pause = None if fixed and len(open_now) == len(meant) else _RETRY
            if deadline is not None:
                left = deadline - time.monotonic()
                pause = min(left, pause) if pause is not None else left
            if pause is not None and pause < 0:
                # The time is over, but a daemon that has just been asked may still answer.
                if not open_now.keys() - alive or pause < -_ANSWER_TIME:
                    return
                pause += _ANSWER_TIME
            for key, _ in selector.select(pause):
                name = key.data
                messages = open_now[name].read()
                if messages is None:
                    selector.unregister(open_now[name])
                    open_now.pop(name).close()
                    if name in alive:
                        yield event("lost", name, time.time())
                    alive.discard(name)
                    continue
                for message in messages:
                    if "ok" in message:
                        answer = checked(name, message)
                        alive.add(name)
                        yield event("status", name, answer["at"], status=answer["status"])
                    else:
                        if message["event"] == "stopped":
                            alive.discard(name)
                        yield message


def _close(connections: Mapping[str, Connection]) -> None:
    for connection in connections.values():
        connection.close()


# --- for people ----------------------------------------------------------------------------------


def _when(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _table(reports: Iterable[dict[str, Any]]) -> list[str]:
    """Return aligned columns, then a line for each note, limit and conflict, which fit no column."""
    rows = [("INTERFACE", "STATE", "ADDRESS", "SINCE", "NEXT", "POLICY", "CONFLICTS", "OTHERS")]
    notes: list[str] = []
    for report in reports:
        name, state = report["interface"], report["state"]
        if state == "not-running":
            rows.append((name, state, "-", "-", "-", "-", "-", "-"))
            continue
        step = "-" if not report["step"] else f"{report['step']} in {report['step_in']:.1f} s"
        address = report["address"] or (f"({report['candidate']})" if report["candidate"] else "-")
        conflicts = f"{report['conflicts']}, {report['defences']} defended"
        others = " ".join(report["others"]) or "-"
        since = _when(report["since"])
        rows.append((name, state, address, since, step, report["policy"], conflicts, others))
        if report["why"]:
            notes.append(f"{name}: {state}: {report['why']}")
        if (last := report["last_conflict"]) is not None:
            about = f"{last['mac']} about {last['address']}, {_when(last['at'])}"
            notes.append(f"{name}: last conflict: {about}")
        counts = report.get("kernel_defence") or {}
        if any(counts.values()):
            words = ("answered", "left to the daemon", "failed")
            each = [f"{counts[word.split()[0]]} {word}" for word in words]
            notes.append(f"{name}: conflicts in the kernel: {', '.join(each)}")
        notes += [f"{name}: {line}" for line in (*report["notes"], *report["limits"])]
        near = [f"{one['address']} {one['mac'] or '?'}" for one in report.get("neighbours", ())]
        if near:
            more = (
                [f"{len(near) - _NEIGHBOURS_SHOWN} more"] if len(near) > _NEIGHBOURS_SHOWN else []
            )
            notes.append(f"{name}: neighbours: {', '.join(near[:_NEIGHBOURS_SHOWN] + more)}")
    return arguments.aligned(rows) + notes


def _line(happened: dict[str, Any]) -> str:
    """Return the line of an event, for people."""
    return f"{_when(happened['at'])} {happened['interface']}: {_text(happened)}"


def _text(happened: dict[str, Any]) -> str:
    match happened:
        case {"event": "status", "status": now}:
            return f"{now['state']} {now['address'] or now['candidate'] or ''}".rstrip()
        case {"event": "transition", "old": old, "new": new, "why": why, "address": address}:
            return f"{old} -> {new}: {why}" + (f"; {address}" if address else "")
        case {"event": "conflict", "mac": mac, "address": address, "in_use": in_use}:
            return f"conflict: {mac} about {address}" + ("; given up" if in_use else "")
        case {"event": "defence", "mac": mac, "address": address, "delay": delay}:
            return f"defended {address} against {mac} after {delay * 1e3:.2f} ms"
        case {"event": "address-added" | "address-removed" as what, "address": address}:
            verb = "came" if what == "address-added" else "went"
            return f"{address}/{happened['prefixlen']} {verb}"
        case {"event": "stopped"}:
            return "stopped"
        case {"event": "lost"}:
            return "the daemon is gone; waiting for it"
        case _:
            return json.dumps(happened)


COMMANDS: Mapping[str, Callable[[Sequence[str], Mapping[str, str]], int]] = {
    "status": status,
    "watch": watch,
    "wait": wait,
    "refresh": refresh,
    "reload": reload,
    "stop": stop,
    "route": route,
}


def main(command: str, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one of COMMANDS; return its exit status."""
    return COMMANDS[command](words, environ)
