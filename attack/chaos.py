"""Chaos: what a machine does to a program, at every moment; after it the next start has to leave nothing wrong.

Each trial is one event on a host of its own in a namespace, and ends with an autoip that was stopped in order. The
oracle is `ground.Ground`: `whole` while an address is held, `clean` afterwards.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab import AddressMonitor, Sniffer, frames
from tests.netns.helpers import PATIENCE, RIVAL, autoip_command, wait_until

from .ground import QUICK, Ground, Wrong
from .noise import noise

OPTIONS = ((*QUICK,), (*QUICK, "--default-route"), (*QUICK, "--policy", "fallback"))
"""What autoip is started with, in turn."""
CHANGING = (
    *("sendto", "sendmsg", "write", "pwrite64", "openat", "mkdir", "mkdirat", "unlink", "unlinkat"),
    *(
        "rename",
        "renameat",
        "renameat2",
        "bind",
        "connect",
        "setsockopt",
        "flock",
        "fsync",
        "chmod",
    ),
    *(
        "fchmod",
        "bpf",
        "close",
        "ftruncate",
        "link",
        "symlink",
        "fchown",
        "capset",
        "timerfd_settime",
    ),
)
"""System calls of which one more or one less makes a difference to the next start."""

BUSY = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass"
"""A program that keeps a processor busy; it ends by itself, whatever becomes of us."""


# --- kills ------------------------------------------------------------------------------------------


def _recover(ground: Ground, options: Sequence[str]) -> None:
    """The next start: it gets an address, has all that belongs to it once, and leaves nothing when it ends."""
    address = ground.start_and_claim(*options)
    ground.whole(address, more_routes=2 * ("--default-route" in options))
    ground.stop()
    ground.clean()


def kill_while_starting(ground: Ground) -> None:
    """SIGKILL at a random moment between the start and the second announcement."""
    options = ground.random.choice(OPTIONS)
    ground.start(*options)
    time.sleep(
        ground.random.choice([ground.random.uniform(0, 0.8), ground.random.uniform(0.8, 2.8)])
    )
    ground.daemon.kill()
    _recover(ground, options)


def kill_while_stopping(ground: Ground) -> None:
    """SIGKILL some milliseconds after SIGTERM."""
    options = ground.random.choice(OPTIONS)
    ground.start_and_claim(*options)
    ground.daemon.signal(signal.SIGTERM)
    time.sleep(ground.random.uniform(0, 0.06))
    ground.daemon.kill()
    _recover(ground, options)


def kill_while_moving(ground: Ground) -> None:
    """SIGKILL while conflicts have autoip change from one address to the next."""
    address = ground.start_and_claim(*QUICK)
    for _ in range(2):  # the first is defended
        ground.port.send(frames.conflict_request(RIVAL, address))
    time.sleep(ground.random.uniform(0, 0.1))
    ground.daemon.kill()
    _recover(ground, QUICK)


class SystemCalls:
    """The system calls of autoip's main thread from its lock file on: which, and the how many-th of its kind."""

    def __init__(self) -> None:
        self._places: list[tuple[str, int]] = []

    def next(self, ground: Ground) -> tuple[str, int]:
        """One that was not tried yet, in random order; all of them again when all were."""
        if not self._places:
            self._places = self._record(ground)
            ground.random.shuffle(self._places)
        return self._places.pop()

    def _record(self, ground: Ground) -> list[tuple[str, int]]:
        log = ground.daemon.folder / "calls"
        traced(ground, ["-o", str(log)])
        ground.clean()
        counts: Counter[str] = Counter()
        places: list[tuple[str, int]] = []
        main = ""
        for line in log.read_text(errors="replace").splitlines():
            thread, _, rest = line.partition(" ")
            main = main or thread
            if thread != main or (found := re.match(r"\s*(\w+)\(", rest)) is None:
                continue
            counts[found[1]] += 1
            if places or str(ground.daemon.runtime) in rest:
                places.append((found[1], counts[found[1]]))
        return [place for place in places if place[0] in CHANGING]


def traced(ground: Ground, how: Sequence[str]) -> None:
    """A whole life of autoip under strace: start, claim, SIGTERM, end; or less, if it is killed on the way."""
    traced = ground.autoip("strace", "-f", "-qq", *how)
    traced.start(*QUICK)
    wait_until(
        lambda: not traced.running or any("claimed " in line for line in traced.lines), "a claim"
    )
    if traced.running:
        pids = [pid for pid in ground.host.processes() if pid != traced.pid]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    traced.wait(PATIENCE)
    traced.close()


CALLS = SystemCalls()


def kill_at_a_system_call(ground: Ground) -> None:
    """SIGKILL at the entry of a system call."""
    call, number = CALLS.next(ground)
    inject = f"inject={call}:signal=KILL:when={number}"
    try:
        traced(ground, ["-o", "/dev/null", "-e", f"trace={call}", "-e", inject])
        _recover(ground, QUICK)
    except AssertionError as problem:
        raise Wrong(f"killed at {call} number {number}: {problem}") from problem


def kill_while_installing_hooks(ground: Ground) -> None:
    """SIGKILL while `hooks install` or `hooks remove` writes; then either completes, and removing leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="autoip-attack-") as name:
        root = Path(name)
        for folder in ("etc", "lib"):
            (root / folder).mkdir()
        words = [*autoip_command(), "hooks"]
        names = [f"--client={client}" for client in ("dhclient", "dhcpcd", "networkmanager")]
        full = [*words, "install", "--root", name, "--program", "/usr/local/bin/autoip", *names]
        bare = [*words, "remove", "--root", name]
        ground.host.run(*full)
        whole = _files(root)
        if ground.random.random() < 0.5:
            ground.host.run(*bare)
        victim = ground.host.popen(
            ground.random.choice([full, bare]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(ground.random.uniform(0.03, 0.15))
        victim.kill()
        victim.wait()
        if ground.random.random() < 0.5:
            ground.host.run(*full)
            if (found := _files(root)) != whole:
                raise Wrong(f"after install: {sorted(found ^ whole)}")
        ground.host.run(*bare)
        if left := _files(root):
            raise Wrong(f"after remove: {sorted(left)}")


def _files(root: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


# --- time -------------------------------------------------------------------------------------------


def stop_over_a_deadline(ground: Ground) -> None:
    """SIGSTOP while an address is probed, a conflict that comes meanwhile, SIGCONT when each deadline is over."""
    since = len(ground.daemon.lines)
    with (
        Sniffer(ground.switch.namespace, ground.port.far) as sniffer,
        AddressMonitor(ground.host) as monitor,
    ):
        ground.start("--delay", "200")
        address = sniffer.wait_probe(timeout=PATIENCE).tpa
        time.sleep(ground.random.uniform(0, 0.8))
        ground.daemon.signal(signal.SIGSTOP)
        time.sleep(0.05)
        held = address in ground.host.link_local("eth0")
        announced = bool(sniffer.announcements(address))
        conflict_ns = time.time_ns()
        rival = ground.random.choice(
            [frames.conflict_request(RIVAL, address), frames.conflict_reply(RIVAL, address)]
            + ([] if held or announced else [frames.probe(RIVAL, address)])
        )
        ground.port.send(rival)
        time.sleep(ground.random.choice([0.1, 0.5, 1.5]))
        ground.daemon.signal(signal.SIGCONT)
        if not held:
            other = ground.claimed(since=since)
            wrong = [
                event
                for event in monitor.events()
                if event[1] and event[2].address == address and event[0] > conflict_ns
            ]
            if other == address or wrong:
                raise Wrong(f"{address} was put on although another host had claimed it")
        else:
            # Defended, or given up if it had not been announced yet.
            wait_until(
                lambda: (
                    address not in ground.host.link_local("eth0")
                    or any(f.ns > conflict_ns for f in sniffer.announcements(address))
                ),
                "a defence",
            )
            wait_until(lambda: len(ground.host.link_local("eth0")) == 1, "one address")
            (other,) = ground.host.link_local("eth0")
    ground.whole(other)
    ground.stop()
    ground.clean()


def busy_processors(ground: Ground) -> None:
    """Two busy processes at nice -20: three probes come before the address, and a conflict is answered."""
    busy = [subprocess.Popen(["nice", "-n", "-20", sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        with Sniffer(ground.switch.namespace, ground.port.far) as sniffer:
            ground.start("--delay", "20")
            first = sniffer.wait_announcement(timeout=PATIENCE)
            probes = [f for f in sniffer.probes(first.spa) if f.ns < first.ns]
            if len(probes) != 3:
                raise Wrong(f"{len(probes)} probes before the announcement")
            since = sniffer.mark()
            ground.port.send(frames.conflict_request(RIVAL, first.spa))
            sniffer.wait_announcement(first.spa, PATIENCE, since=since)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    ground.whole(first.spa)
    ground.stop()
    ground.clean()


# --- storms -----------------------------------------------------------------------------------------


def storm(ground: Ground) -> None:
    """Thousands of frames that are no conflict, from the first probe on; then one that is."""
    since = len(ground.daemon.lines)
    with Sniffer(ground.switch.namespace, ground.port.far, 200_000) as sniffer:
        ground.start("--delay", "200")
        address = sniffer.wait_probe(timeout=PATIENCE).tpa
        frames_ = noise(ground.port.mac, address, ground.random.randrange(10**9))
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for frame in itertools.islice(frames_, 200):
                ground.port.send(frame)
            time.sleep(0.005)  # beyond the kernel's queue all is dropped
        if ground.claimed(since=since) != address:
            raise Wrong(f"{address} was given up, and nobody wanted it")
        mark = sniffer.mark()
        ground.port.send(frames.conflict_request(RIVAL, address))
        sniffer.wait_announcement(address, PATIENCE, since=mark)
    ground.whole(address)
    ground.stop()
    ground.clean()


def flapping_link(ground: Ground) -> None:
    """The link goes and comes, hundreds of times, as fast as `ip` can; then it stays."""
    ground.start_and_claim(*QUICK)
    flaps = ground.random.randrange(50, 300)
    ground.host.run("ip", "-batch", "-", stdin="link set eth0 down\nlink set eth0 up\n" * flaps)
    # The last announcement comes when all flaps are worked off.
    with Sniffer(ground.switch.namespace, ground.port.far) as sniffer:
        sniffer.wait_announcement(timeout=60)
    wait_until(lambda: len(ground.host.link_local("eth0")) == 1, "one address")
    (address,) = ground.host.link_local("eth0")
    ground.whole(address)
    ground.stop()
    ground.clean()


TRIALS: dict[str, tuple[Callable[[Ground], None], int]] = {
    "kill while starting": (kill_while_starting, 4),
    "kill while stopping": (kill_while_stopping, 2),
    "kill while moving": (kill_while_moving, 2),
    "kill at a system call": (kill_at_a_system_call, 4),
    "kill while installing hooks": (kill_while_installing_hooks, 1),
    "stop over a deadline": (stop_over_a_deadline, 2),
    "busy processors": (busy_processors, 1),
    "storm": (storm, 1),
    "flapping link": (flapping_link, 1),
}
"""Each with how often it comes in a round."""
NAMES = tuple(name.replace(" ", "-") for name in TRIALS)


def run(
    names: Sequence[str], seconds: float, seed: int, write: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Trials of the named kinds (none: all) for so long; what was tried, and what was found.

    A ground on which something was found is given up, since the next trial would find it again.
    """
    chosen = [
        name
        for name, (_, often) in TRIALS.items()
        for _ in range(often)
        if not names or name.replace(" ", "-") in names
    ]
    workers = min(os.cpu_count() or 1, 4)
    write(f"chaos: {seconds:g} s on {workers} hosts at once; seed {seed}")
    counts: Counter[str] = Counter()
    findings: list[str] = []
    end = time.monotonic() + seconds

    def attack(worker: int) -> None:
        turns = itertools.count()
        while time.monotonic() < end and len(findings) < 20:
            with Ground(f"chaos{worker}", seed + worker * 1000 + next(turns)) as ground:
                order = list(chosen)
                while time.monotonic() < end:
                    ground.random.shuffle(order)
                    for name in order:
                        if time.monotonic() >= end and counts[name]:
                            break
                        counts[name] += 1
                        try:
                            TRIALS[name][0](ground)
                        except Exception:  # noqa: BLE001 (whatever it is, it is a finding)
                            said = "\n".join(ground.daemon.lines[-12:])
                            findings.append(f"{name}\n{traceback.format_exc(-3)}{said}\n")
                            write(f"  {name}: FOUND, see below")
                            break
                    else:
                        continue
                    break

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(attack, range(workers)))
    for name in dict.fromkeys(chosen):
        write(f"  {name}: {counts[name]:,}")
    rows = {
        name: {"count": counts[name], "unit": "times", "seconds": round(seconds)}
        for name in dict.fromkeys(chosen)
        if not any(finding.startswith(f"{name}\n") for finding in findings)
    }
    return rows, findings
