"""The cost of a bound program when nothing happens, and the memory of one and of many interfaces."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

from lab import Namespace
from lab.daemon import REPOSITORY
from lab.frames import conflict_request
from lab.peers import AvahiAutoipd, Networkd

from . import cables
from .cables import Cable
from .costs import cost
from .report import Result, Target, number
from .setting import STRANGER, Setting, autoip, optional
from .tap import Tap

NAME = "idle"

MANY = 200
FIRST_KB = 24 * 1024
FURTHER_KB = 60
SHOWN = ("VmRSS", "RssAnon", "Threads")


def measure(setting: Setting) -> Result:
    seconds = setting.times(60, 10)
    result = Result(
        NAME,
        f"bound and nothing to do for {seconds} s; memory in kB",
        ("", "wake-ups", "CPU ms", "RSS", "anonymous", "threads"),
    )
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        yonder = enter(Namespace("far"))
        one = cables.lay(yonder, enter(Namespace("one")))
        many = cables.lay(yonder, enter(Namespace("many")), MANY)
        theirs = cables.lay(yonder, enter(Namespace("avahi")))
        others = cables.lay(yonder, enter(Namespace("networkd")))
        single = enter(autoip(setting, one, "--delay", "200"))
        single.start()
        crowd = enter(autoip(setting, many, "--delay", "200"))
        crowd.start()
        avahi = enter(optional(setting, AvahiAutoipd, theirs))
        networkd = enter(optional(setting, Networkd, others))
        programs = {"autoip, 1 interface": [single.pid], f"autoip, {MANY} interfaces": [crowd.pid]}
        cables.wait_held(one, 30)
        held = cables.wait_held(many, 60)
        for name, laid, running in (
            ("avahi-autoipd", theirs, avahi),
            ("systemd-networkd", others, networkd),
        ):
            if running is not None:
                cables.wait_held(laid, 30)
                programs[name] = [running.pid]
        time.sleep(5)  # the announcements are over
        before = {name: cost(pids) for name, pids in programs.items()}
        time.sleep(seconds)
        for name, pids in programs.items():
            spent = cost(pids) - before[name]
            memory = _memory(pids[0])
            memory["wakeups"], memory["cpu_s"] = spent.wakeups, spent.cpu
            result.numbers[name] = memory
            cells = (number(memory[key]) for key in SHOWN)
            row = (name, str(spent.wakeups), number(spent.cpu * 1e3), *cells)
            result.rows.append(row)
        answered = _answers(many[-1], held[many[-1].name])
    _add_bare_pythons(result)
    first, all_ = (result.numbers[name] for name in list(programs)[:2])
    result.targets = [
        *_targets(seconds, first, all_),
        Target(f"of {MANY} interfaces have an address", MANY, len(held), "", at_least=True),
        Target("conflicts on the last one answered", 1, float(answered), "", at_least=True),
    ]
    result.numbers["held"] = len(held)
    result.notes = [
        (
            "Wake-ups: voluntary context switches of all threads. autoip with --delay 200; each further"
            f" interface: the difference of the two processes divided by {MANY - 1}."
        ),
    ]
    return result


def _add_bare_pythons(result: Result) -> None:
    for code in ("pass", "import asyncio", "import asyncio, pyroute2"):
        memory = _imports(code)
        name = f"python -c '{code}'"
        result.numbers[name] = memory
        result.rows.append((name, "", "", *(number(memory[key]) for key in SHOWN)))


def _targets(seconds: int, first: dict[str, float], all_: dict[str, float]) -> list[Target]:
    further = (all_["VmRSS"] - first["VmRSS"]) / (MANY - 1)
    return [
        Target(f"wake-ups in {seconds} s, 1 interface", 0, first["wakeups"], ""),
        Target(f"wake-ups in {seconds} s, {MANY} interfaces", 0, all_["wakeups"], ""),
        Target("RSS, first interface", FIRST_KB, first["VmRSS"], "kB"),
        Target("RSS, each further interface", FURTHER_KB, further, "kB"),
    ]


def _answers(cable: Cable, address: IPv4Address) -> bool:
    with Tap(cable) as tap:
        return tap.exchange(conflict_request(STRANGER, address), address, 2) is not None


def _memory(pid: int) -> dict[str, float]:
    """Return VmRSS and its parts in kB, and Threads, of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.findall(r"^(VmRSS|VmHWM|RssAnon|RssFile|Threads):\s+(\d+)", text, re.MULTILINE)
    return {key: float(value) for key, value in found}


def resident(pid: int) -> float:
    """Return the resident memory of a process, in kB."""
    return _memory(pid)["VmRSS"]


def _imports(code: str) -> dict[str, float]:
    """Return the same of a bare Python."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\ninput()"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    memory = _memory(process.pid)
    process.communicate(b"\n")
    return memory
