"""The commands that talk to a running daemon: status, watch, wait, refresh, stop.

They start fast: no asyncio, no pyroute2, nothing of the daemon is imported.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import partial

from autoip.commands import arguments
from autoip.control.client import Connection, ask, checked, served
from autoip.control.protocol import VERSION, event
from autoip.errors import AutoipError, NotRunning
from autoip.option_table import SECONDS_MAX, Option, interface_name, seconds
from autoip.paths import runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

_ANSWER_TIME = 1.0  # seconds that a daemon may take to say how things stand
_RETRY = 0.25  # seconds between two looks for a daemon that is not there

_EXIT_NOT_HELD = 1


# fmt: off
_IFACE = Option(
    "interface", "IFACE", "the interface", read=interface_name, operand=True, offers="interfaces",
)
_IFACES = Option(
    "interfaces", "IFACE", "default: all that are served",
    read=interface_name, repeat="all", operand=True, offers="interfaces",
)
OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "status": (Option("json", "", "one JSON object, for scripts"), _IFACES),
    "watch": (Option("json", "", "one JSON object a line, for scripts"), _IFACES),
    "wait": (
        Option(
            "timeout", "S", f"give up after so many seconds, 0 to {SECONDS_MAX}; default: never",
            read=seconds, repeat="last",
        ),
        _IFACE,
    ),
    "refresh": (_IFACE,),
    "stop": (_IFACE,),
}
"""The options of each command."""
# fmt: on


def _parse(command: str, words: Sequence[str]) -> dict[str, Any]:
    options = OPTIONS[command]
    return arguments.values(options, arguments.texts(command, options, words))


def status(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """How things stand; exit status 0 only if each interface holds an address."""
    found = _parse("status", words)
    directory = runtime_directory(environ)
    names = found["interfaces"] or served(directory)
    reports = [_report(directory, name) for name in names]
    if found["json"]:
        print(json.dumps({"version": VERSION, "interfaces": reports}, indent=2))
    elif reports:
        print("\n".join(_table(reports)))
    if not reports:
        raise _NotHere("no autoip runs in this network namespace")
    if any(report["state"] == "not-running" for report in reports):
        return NotRunning.exit_status
    return 0 if all(report["address"] for report in reports) else _EXIT_NOT_HELD


def watch(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Events as they happen, until interrupted; waits for a daemon that is not there."""
    found = _parse("watch", words)
    show: Callable[[dict[str, Any]], str] = json.dumps if found["json"] else _line
    for happened in _events(runtime_directory(environ), found["interfaces"], None):
        print(show(happened), flush=True)
    return 0


def wait(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Returns when the interface holds an address: 0; or 1 when the time is over."""
    found = _parse("wait", words)
    name = found["interface"]
    directory = runtime_directory(environ)
    now = _report(directory, name)  # however short the time is
    if now["address"]:
        return 0
    running = now["state"] != "not-running"
    for happened in _events(directory, [name], found["timeout"]):
        running = happened["event"] not in ("lost", "stopped")
        if happened["event"] == "status" and happened["status"]["address"]:
            return 0
        if happened["event"] == "transition" and happened["new"] in ("announcing", "bound"):
            return 0
    if not running:
        raise NotRunning(name)
    return _EXIT_NOT_HELD


class _NotHere(AutoipError):
    exit_status = NotRunning.exit_status


def _order(request: str, words: Sequence[str], environ: Mapping[str, str]) -> int:
    name = _parse(request, words)["interface"]
    ask(runtime_directory(environ), name, request)
    return 0


# --- what daemons say ----------------------------------------------------------------------------


def _report(directory: str, name: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = ask(directory, name, "status")["status"]
    except NotRunning:
        return {"version": VERSION, "interface": name, "state": "not-running", "address": None}
    return report


def _events(
    directory: str, names: Sequence[str], timeout: float | None
) -> Iterator[dict[str, Any]]:
    """What happens to the interfaces (none named: all that are served) until the time is over."""
    import selectors

    deadline = None if timeout is None else time.monotonic() + timeout
    open_now: dict[str, Connection] = {}
    alive: set[str] = set()  # those that have answered, and have not said that they stop
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        stack.callback(_close, open_now)
        while True:
            for name in names or served(directory):
                if name not in open_now:
                    with contextlib.suppress(NotRunning):
                        open_now[name] = Connection(directory, name, "watch")
                        selector.register(open_now[name], selectors.EVENT_READ, name)
            pause = None if names and len(open_now) == len(set(names)) else _RETRY
            if deadline is not None:
                left = deadline - time.monotonic()
                pause = min(left, pause) if pause is not None else left
            if pause is not None and pause < 0:
                # Time is up, but who has just been asked may answer.
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
    """Aligned columns, then a line for each thing that fits no column."""
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
        notes += [f"{name}: {line}" for line in (*report["notes"], *report["limits"])]
    return arguments.aligned(rows) + notes


def _line(happened: dict[str, Any]) -> str:
    """One event, readable."""
    return f"{_when(happened['at'])} {happened['interface']}: {_told(happened)}"


def _told(happened: dict[str, Any]) -> str:
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
    "refresh": partial(_order, "refresh"),
    "stop": partial(_order, "stop"),
}


def main(command: str, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one of COMMANDS; return its exit status."""
    return COMMANDS[command](words, environ)
