"""autoip at work, in a private network: a host, a cable, and a neighbour that disputes the address.

    python -m demo

Needs root or, without it, a kernel that lets users make namespaces. Ends by itself in under a minute; exit
status 0 only if everything that it prints really happened. Nothing is left: the network exists in this process
and ends with it. AUTOIP_COMMAND (shell words) may name another program to show.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from ipaddress import IPv4Address
from types import FrameType
from typing import NoReturn

from lab import (
    Daemon,
    LabError,
    Namespace,
    Port,
    Switch,
    answers_probes,
    frames,
    journal,
    leftover_folders,
    leftovers,
)
from lab.daemon import REPOSITORY
from lab.devices import Camera

LIMIT = 55
"""Seconds after which it ends, whatever has happened."""
DEFEND_INTERVAL = 10.0
"""RFC 3927 section 9: a second conflict within so many seconds makes the host give its address up."""
REPORT_LIMIT = 3.0
"""Longest wait for the daemon's own line about something before the next caption or fact, in seconds."""
FIRST = IPv4Address("169.254.20.20")
CAMERA_MAC = "00:11:1c:0a:0b:0c"
INSIDE = "AUTOIP_DEMO_INSIDE"


class Late(Exception):
    """LIMIT is over."""


def show(text: str) -> None:
    """Print a line with one write, because two threads print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def caption(text: str) -> None:
    show(f"\n== {text}")


def fact(text: str) -> None:
    show(f"   {text}")


class Shown(Daemon):
    """A daemon whose lines are printed as they come."""

    def printed(self, text: str) -> None:
        show(f"   | {text}")

    def await_line(self, pattern: str, since: int = 0) -> None:
        """Wait for a line with the pattern, from number `since` on; at most REPORT_LIMIT, for other programs."""
        with contextlib.suppress(LabError):
            self.wait_line(pattern, REPORT_LIMIT, since=since)


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise LabError(otherwise)


def claim(daemon: Shown, port: Port) -> IPv4Address:
    """Lose an address that a neighbour has, then claim another one."""
    caption(f"A neighbour holds {FIRST}, which autoip tries first.")
    neighbour = port.neighbour(answers_probes(addresses=[FIRST]))
    daemon.start()
    held = daemon.wait_address(15)
    daemon.await_line(rf"claimed {held}")
    expect(held != FIRST, f"{FIRST} was taken although the neighbour has it")
    expect(len(neighbour.answered) >= 1, "the neighbour was never asked")
    expect(len(port.sniffer.probes(held)) == 3, f"{held} was not probed three times")
    fact(f"On the wire: {FIRST} answered by {neighbour.mac}; three probes for {held}.")
    port.sniffer.wait_count(lambda f: f.is_announcement and f.spa == held, 2, 5)
    daemon.await_line(r"-> bound: ")
    fact(f"Announced twice. The interface has {held}/16.")
    neighbour.become()
    return held


def dispute(daemon: Shown, port: Port, held: IPv4Address) -> tuple[int, float | None]:
    """Send one conflict and wait until the daemon has reported it.

    Return its stamp in ns, and the microseconds until the defence; None: no defence within half a second.
    """
    since = port.sniffer.mark()
    reported = len(daemon.lines)
    sent = port.send_stamped(frames.conflict_request("02:00:00:00:00:fe", held))
    try:
        answer = port.sniffer.wait_announcement(held, 0.5, since=since)
    except LabError:
        return sent, None
    finally:
        daemon.await_line(re.escape(str(held)), since=reported)
    return sent, (answer.ns - sent) / 1000


def defend(daemon: Shown, port: Port, held: IPv4Address) -> int:
    """Send one conflict: the address is kept. Return its stamp in ns."""
    caption(f"The neighbour says once that {held} is its own.")
    sent, micros = dispute(daemon, port, held)
    expect(micros is not None, "it was not defended")
    expect(daemon.addresses() == [held], f"{held} was given up at the first conflict")
    fact(f"Defended {micros:.0f} microseconds later, and kept.")
    return sent


def give_up(daemon: Shown, port: Port, held: IPv4Address, disputed: int) -> None:
    """Send two conflicts within DEFEND_INTERVAL: another address is claimed."""
    caption(f"Quiet for {DEFEND_INTERVAL:.0f} s, so that the next conflict counts as a first one.")
    until = disputed + int((DEFEND_INTERVAL + 0.5) * 1e9)
    time.sleep(max(0.0, (until - time.time_ns()) / 1e9))
    caption(f"The neighbour says it twice, one second apart: {held} is worth no war.")
    _, micros = dispute(daemon, port, held)
    expect(micros is not None, "it was not defended again after the pause")
    fact(f"Defended {micros:.0f} microseconds later.")
    time.sleep(1)
    _, again = dispute(daemon, port, held)
    expect(again is None, "it was defended twice within ten seconds")
    other = daemon.wait_address(15, other_than=held)
    port.sniffer.wait_announcement(other, 5)
    daemon.await_line(rf"claimed {other}")
    fact(f"Given up; {other} probed, claimed and announced instead.")


def stop(daemon: Shown, port: Port) -> None:
    """End the daemon by SIGTERM and check that nothing is left."""
    caption("SIGTERM.")
    status = daemon.stop(10)
    left = [entry.address for entry in port.host.addresses(port.name)]
    expect(status == 0, f"exit status {status}")
    expect(not left, f"addresses left: {left}")
    expect(not list(daemon.runtime.iterdir()), "run-time files left")
    expect(not port.host.processes(), "processes left")
    rules = port.host.ip("rule").splitlines()
    routes = port.host.ip("route show table all").splitlines()
    expect(not any("169.254" in line for line in [*rules, *routes]), "routes or rules left")
    fact("Exit status 0; no address, route, rule, process or run-time file is left.")


def find(command: list[str], port: Port) -> None:
    """Plug in a camera with a wrong address, and look for it."""
    caption("A camera with an address of another network is plugged in: which address has it?")
    fact("$ " + shlex.join(["autoip", *command[-3:]]))
    where = (CAMERA_MAC, "192.168.77.5", "255.255.255.0")
    with Camera(port.switch.namespace, port.far, *where, "ACME", "Eye 5", "1", "", "S123"):
        began = time.monotonic()
        found = port.host.run(*command).splitlines()
    for line in found:
        show(f"   | {line}")
    expect(any("192.168.77.5" in line for line in found), "the camera was not found")
    fact(
        f"Found within {time.monotonic() - began:.1f} s of the start; the last words are what reaches it."
    )


def play() -> None:
    """Run the whole demonstration.

    Raises:
        LabError: something did not happen.
    """
    other = shlex.split(os.environ.get("AUTOIP_COMMAND", ""))
    program = other or [sys.executable, "-m", "autoip"]
    command = [*program, "eth0", "--ip", str(FIRST), "--delay", "200"]
    with Switch() as switch, Namespace("demo") as host:
        port = switch.attach(host, mac="02:00:00:00:00:01")
        caption("A private network: eth0 on one end of a cable, a neighbour on the other.")
        fact("$ " + shlex.join(["autoip", *command[-5:]]))
        with Shown(host, "eth0", command, terminal=True) as daemon:
            held = claim(daemon, port)
            disputed = defend(daemon, port, held)
            give_up(daemon, port, held, disputed)
            stop(daemon, port)
        if not other:
            find([*program, "scan", "eth0", "--first"], port)


def root_of_a_namespace() -> NoReturn:
    """Start this program again as root of a user namespace. Does not return."""
    unshare = shutil.which("unshare")
    if unshare is None or os.environ.get(INSIDE):
        sys.exit("the demonstration needs root, or a kernel that lets users make namespaces")
    os.environ[INSIDE] = "1"
    command = [unshare, "--user", "--map-root-user", "--", sys.executable, "-m", "demo"]
    os.chdir(REPOSITORY)
    os.execv(unshare, command)


def main() -> int:
    """Run and clean up. Return the exit status; 0: all of it happened; 1: not, with the reason printed."""
    if os.geteuid() != 0:
        root_of_a_namespace()

    def too_late(number: int, frame: FrameType | None) -> NoReturn:
        raise Late

    def last_resort() -> None:
        # Python runs signal handlers between instructions only; if that hangs too, the kernel cleans up.
        time.sleep(LIMIT + 4)
        print("the demonstration hangs", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=last_resort, daemon=True).start()
    signal.signal(signal.SIGALRM, too_late)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(LIMIT)
    why = ""
    began = time.monotonic()
    try:
        play()
    except LabError as error:
        why = str(error)
    except PermissionError as error:
        why = f"{error} (is it allowed to make namespaces here?)"
    except Late:
        why = f"not done after {LIMIT} s"
    except KeyboardInterrupt:
        why = "interrupted"
    signal.alarm(0)
    left = leftovers() + leftover_folders()
    if why:
        print("\n-- on the wire --\n" + journal.timeline(60), file=sys.stderr)
        print(f"\nFAILED: {why}", file=sys.stderr)
    if left:
        print("left behind: " + "; ".join(left), file=sys.stderr)
    if why or left:
        return 1
    seconds = time.monotonic() - began
    caption(f"All of it happened in {seconds:.0f} s; the private network is gone.")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
