"""The script that all hooks call: at once, in any order, whatever the client's surroundings are."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab import Namespace, Port, machine
from lab.daemon import REPOSITORY
from lab.programs import find_program
from tests.require import requires_program

from .conftest import MakeDaemon, MakeHost, autoip_command
from .helpers import NETNS, claim, configuration, wait_until
from .hooked import Hooked, MakeHooked

pytestmark = NETNS

UNIT = REPOSITORY / "share" / "autoip@.service"


@pytest.fixture
def host(port: Port, make_hooked: MakeHooked) -> Hooked:
    made = make_hooked(port.host)
    # Any client brings the shared script along.
    made.install("--client", "dhclient")
    return made


def locked(host: Hooked, interface: str) -> bool:
    """Whether a daemon that a hook has started lives, or is about to."""
    path = f"/run/autoip-hooks/{host.host.inode}-{interface}.daemon"
    return host.host.run("sh", "-c", f"flock -n {path} true || echo locked") == "locked\n"


def test_start_and_stop(port: Port, host: Hooked) -> None:
    host.call("start", "eth0")
    address = host.wait_address(port)
    (daemon,) = host.daemons("eth0")
    host.call("start", "eth0")
    host.call("stop", "eth0")
    host.wait_no_address(port)
    host.wait_ended("eth0")
    host.call("stop", "eth0")
    host.call("start", "eth0")
    assert host.wait_address(port) == address
    assert host.daemons("eth0") != [daemon]
    assert host.starts() == ["run --hook eth0"] * 2
    assert host.complaints() == []


def test_a_hundred_at_once_are_one_daemon(port: Port, host: Hooked) -> None:
    hundred = "for _ in $(seq 100); do /etc/autoip/hook {} eth0 & done; wait"
    assert host.host.run("sh", "-c", hundred.format("start") + " 2>&1", timeout=120) == ""
    host.wait_address(port)
    assert len(host.daemons("eth0")) == 1
    assert host.host.run("sh", "-c", hundred.format("stop") + " 2>&1", timeout=120) == ""
    host.wait_ended("eth0")
    assert port.host.addresses("eth0") == []
    # None has started another one that found the interface taken, and most had nothing to stop.
    assert len(host.stops()) < 5
    assert host.starts() == ["run --hook eth0"]
    assert host.complaints() == []


def test_while_one_works_one_waits_and_the_others_leave(port: Port, host: Hooked) -> None:
    host.call("start", "eth0")
    address = host.wait_address(port)
    host.wait_acted()
    lock = f"/run/autoip-hooks/{host.host.inode}-eth0.work"
    busy = host.host.popen(["flock", "--no-fork", lock, "sleep", "300"])
    wait_until(lambda: host.host.run("sh", "-c", f"flock -n {lock} true || echo no"), "a lock")
    for _ in range(20):
        host.call("stop", "eth0")
    wait_until(lambda: len(host.workers()) == 1, "one that waits")
    assert port.host.link_local("eth0") == [address]
    busy.kill()
    host.wait_ended("eth0")


def test_early_does_not_replace_a_start_that_is_due(port: Port, host: Hooked) -> None:
    lock = f"/run/autoip-hooks/{host.host.inode}-eth0.work"
    host.host.run("mkdir", "-m", "700", "/run/autoip-hooks")

    def started(*actions: str) -> list[str]:
        """What is started by requests that nobody acts on meanwhile."""
        with host.host.popen(["flock", "--no-fork", lock, "sleep", "300"]) as busy:
            wait_until(lambda: host.host.run("sh", "-c", f"flock -n {lock} true || echo no"), "it")
            for action in actions:
                host.call(action, "eth0")
            busy.kill()
        wait_until(lambda: len(host.daemons("eth0")) == 1, "a daemon")
        wait_until(lambda: host.state("eth0") not in ("?", "not-running"), "its socket")
        host.wait_acted()
        last = host.starts()[-1]
        host.autoip("stop", "eth0")
        host.wait_ended("eth0")
        wait_until(lambda: not locked(host, "eth0"), "its end")
        return [last]

    assert started("start", "early") == ["run --hook eth0"]
    # That `start` was acted on.
    assert started("early") == ["run --hook --early eth0"]
    assert started("start", "stop", "early") == ["run --hook --early eth0"]
    assert started("early", "start") == ["run --hook eth0"]
    assert host.complaints() == []


@pytest.mark.parametrize("next_word", ["", "keep", "start", "early", "idle"])
def test_idle_stops_only_if_nothing_follows(port: Port, host: Hooked, next_word: str) -> None:
    host.call("start", "eth0")
    host.wait_address(port)
    (daemon,) = host.daemons("eth0")
    host.wait_acted()
    waits: list[int] = []

    def one_waits() -> bool:
        waits[:] = host.workers()
        return len(waits) == 1

    host.call("idle", "eth0")
    wait_until(one_waits, "who stops the daemon after 15 s")
    time.sleep(10)
    assert host.daemons("eth0") == [daemon]
    if next_word:
        host.call(next_word, "eth0")
        # The time of the first `idle` is over, that of a second one is not.
        wait_until(lambda: waits[0] not in host.workers(), "the end of the first one's time")
        assert host.daemons("eth0") == [daemon]
    else:
        host.wait_ended("eth0")
        # Of what does not run any more `keep` starts nothing.
        host.call("keep", "eth0")
        time.sleep(1)
        assert host.daemons("eth0") == []
    assert host.starts() == ["run --hook eth0"]
    if not next_word:
        # It may also be the beginning.
        host.call("idle", "eth0")
        wait_until(lambda: host.starts()[1:] == ["run --hook --early eth0"], "its start")
        host.call("stop", "eth0")
        host.wait_ended("eth0")
    assert host.complaints() == []


@pytest.mark.parametrize("last", ["start", "stop"])
def test_the_last_word_counts(port: Port, host: Hooked, last: str) -> None:
    """Start and stop, faster than a daemon can come and go."""
    other = {"start": "stop", "stop": "start"}[last]
    script = f"""
        for _ in 1 2 3 4 5 6 7 8; do
            /etc/autoip/hook {last} eth0; /etc/autoip/hook {other} eth0; sleep 0.1
        done
        /etc/autoip/hook {last} eth0
    """
    host.host.run("sh", "-c", script)
    host.wait_acted()
    if last == "start":
        host.wait_address(port)
        time.sleep(2)  # nothing that was said before comes true now
        assert len(host.daemons("eth0")) == 1
        assert len(port.host.link_local("eth0")) == 1
    else:
        host.wait_ended("eth0")
        wait_until(lambda: not locked(host, "eth0"), "nothing about to start")
        time.sleep(2)
        assert host.daemons("eth0") == []
        assert port.host.addresses("eth0") == []
    assert host.complaints() == []


def test_a_daemon_that_has_no_socket_yet_is_stopped(port: Port, host: Hooked) -> None:
    # There is a second `stop` only after the first one has failed.
    told_twice = f'[ "$(grep -c " stop " {host.log})" -ge 2 ]'
    wait = f'[ "$1" = stop ] || until {told_twice}; do sleep 0.1; done; cd '
    host.program.write_text(host.program.read_text().replace("cd ", wait, 1))
    host.call("start", "eth0")
    wait_until(lambda: host.starts() == ["run --hook eth0"], "its start")
    host.call("stop", "eth0")
    wait_until(lambda: not locked(host, "eth0"), "its end")
    assert host.daemons("eth0") == []
    assert port.host.addresses("eth0") == []
    assert host.starts() == ["run --hook eth0"]
    assert len(host.stops()) > 1
    assert host.complaints() == []


def test_a_daemon_that_somebody_else_started_is_left_alone(
    port: Port, host: Hooked, make_autoip: MakeDaemon
) -> None:
    daemon = make_autoip(port, "--delay", "100")
    daemon.env["RUNTIME_DIRECTORY"] = "/run/autoip"
    address = claim(port, daemon)
    host.call("start", "eth0")
    wait_until(lambda: len(host.starts()) == 1 and not locked(host, "eth0"), "its failure")
    host.call("stop", "eth0")
    host.wait_acted()
    assert daemon.running
    assert port.host.link_local("eth0") == [address]
    assert host.starts() == ["run --hook eth0"]
    assert [words for words in host.stops() if "--leftovers" not in words] == []
    assert host.complaints() == []


def test_a_daemon_of_somebody_else_waits_for_dhcp_no_longer(
    port: Port, host: Hooked, make_autoip: MakeDaemon
) -> None:
    """As the one of the service for all interfaces: a second one is not an error, for no service manager."""
    daemon = make_autoip(port, "--delay", "100", "--policy", "fallback", "--after", "600")
    daemon.env["RUNTIME_DIRECTORY"] = "/run/autoip"
    daemon.start()
    host.wait_state("eth0", "standby")
    assert host.autoip("run", "--hook", "--early", "eth0") == ""
    assert host.state("eth0") == "standby"
    port.host.run(*autoip_command(), "run", "--hook", "eth0")  # its status is 0
    daemon.wait_address(60)
    host.call("start", "eth0")
    wait_until(lambda: len(host.starts()) == 1 and not locked(host, "eth0"), "its end")
    assert host.complaints() == []


def test_what_a_daemon_that_died_has_left_goes(port: Port, host: Hooked) -> None:
    before = configuration(port.host)
    host.call("start", "eth0")
    host.wait_address(port)
    (daemon,) = host.daemons("eth0")
    supervisor = int(Path(f"/proc/{daemon}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for pid in (supervisor, daemon):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not locked(host, "eth0"), "its end")
    assert len(port.host.link_local("eth0")) == 1
    host.call("stop", "eth0")
    wait_until(lambda: configuration(port.host) == before, "nothing of it")
    assert host.stops() == ["stop --leftovers eth0"]
    assert host.complaints() == []


def test_a_daemon_that_dies_is_started_again(port: Port, host: Hooked) -> None:
    """With longer and longer pauses, by one process, until `stop`."""

    def started(times: int) -> bool:
        return len(host.starts()) == times

    host.call("start", "eth0")
    address = host.wait_address(port)
    for died in (1, 2):
        port.sniffer.wait_announcement(address, 60)
        (daemon,) = host.daemons("eth0")
        os.kill(daemon, signal.SIGKILL)
        wait_until(partial(started, died + 1), "the next one")
        since = port.sniffer.mark()
        port.sniffer.wait_announcement(address, 60, since=since)
    assert port.host.link_local("eth0") == [address]
    host.call("start", "eth0")  # changes nothing
    assert host.starts() == ["run --hook eth0"] * 3
    wait_until(lambda: len(host.complaints()) > 1, "both lines")
    assert host.complaints() == [
        f"hook: eth0: {host.program} run --hook eth0 ended with status 137; starts again in {pause} s"
        for pause in (1, 2)
    ]
    host.call("stop", "eth0")
    host.wait_ended("eth0")
    wait_until(lambda: not locked(host, "eth0"), "the end of its supervisor")
    assert port.host.addresses("eth0") == []
    time.sleep(2)
    assert len(host.starts()) == 3


def test_stop_between_two_starts(port: Port, host: Hooked) -> None:
    """Of a daemon that dies at once: no other one is started after that."""
    host.program.write_text(f"#!/bin/sh\necho $$ $* >>{host.log}; exit 1\n")
    host.call("start", "eth0")
    wait_until(lambda: len(host.starts()) == 3, "three starts")  # the next pause has 4 s
    assert locked(host, "eth0")
    host.call("stop", "eth0")
    wait_until(lambda: not locked(host, "eth0"), "the end of its supervisor")
    time.sleep(5)
    assert host.starts() == ["run --hook eth0"] * 3


def test_what_ends_by_itself_is_not_started_again(port: Port, host: Hooked) -> None:

    def started(times: int) -> bool:
        return len(host.starts()) == times

    for count, ending in enumerate(("exit 0", "exit 4", "kill -TERM $$"), 1):
        host.program.write_text(f"#!/bin/sh\necho $$ $* >>{host.log}; {ending}\n")
        host.call("start", "eth0")
        wait_until(partial(started, count), "its start")
        wait_until(lambda: not locked(host, "eth0"), "its end")
    time.sleep(2)
    assert len(host.starts()) == 3
    assert host.complaints() == []


@contextlib.contextmanager
def called_with_pipes(host: Hooked, folder: Path, *numbers: int) -> Iterator[dict[int, int]]:
    """Calls the hook with these descriptors open, one end of a pipe each; the other ends, by descriptor."""
    pipes = {number: os.pipe() for number in numbers}
    # Only bash can name descriptors over 9.
    moves = " ".join(f"{number}>&{write}" for number, (_, write) in pipes.items())
    closes = " ".join(f"{write}>&-" for _, write in pipes.values())
    hook = host.host.popen(
        ["bash", "-c", f"exec {moves} {closes}; exec /etc/autoip/hook start eth0"],
        cwd=folder,
        env={**os.environ, "RUNTIME_DIRECTORY": "/run/client", "PYTHONPATH": "/nowhere", "x": "y"},
        pass_fds=[write for _, write in pipes.values()],
        stdin=subprocess.DEVNULL,
        die_with_us=False,
    )
    for _, write in pipes.values():
        os.close(write)
    try:
        assert hook.wait(30) == 0
        yield {number: read for number, (read, _) in pipes.items()}
    finally:
        for read, _ in pipes.values():
            os.close(read)


def has_ended(pipe: int) -> bool:
    """Nobody has the other end any more, within a while."""
    return select.select([pipe], [], [], 60)[0] == [pipe] and os.read(pipe, 100) == b""


def test_nothing_of_the_client_is_passed_on(port: Port, host: Hooked, tmp_path: Path) -> None:
    """Files, standard streams, session, directory, environment: neither to the daemon nor beside it."""
    (tmp_path / "here").mkdir()
    with called_with_pipes(host, tmp_path / "here", 1, 2, 3, 9, 40) as pipes:
        host.wait_address(port)
        (daemon,) = host.daemons("eth0")
        for number, pipe in pipes.items():
            assert has_ended(pipe), f"descriptor {number} is held open"
    proc = Path(f"/proc/{daemon}")
    lines = (proc / "environ").read_bytes().split(b"\0")
    names = {line.partition(b"=")[0] for line in lines}
    assert not {b"RUNTIME_DIRECTORY", b"PYTHONPATH", b"x"} & names
    assert os.getsid(daemon) != os.getsid(0)
    streams = [os.readlink(proc / "fd" / str(number)) for number in range(3)]
    lock = f"/run/autoip-hooks/{host.host.inode}-eth0.daemon"
    assert streams == [lock, "/dev/null", "/dev/null"]


def test_a_program_that_closes_nothing_has_nothing(host: Hooked, tmp_path: Path) -> None:
    """What the script itself can name it closes, whatever the program does."""
    host.program.write_text(f"#!/bin/sh\npwd >{tmp_path}/pwd\nexec sleep 300\n")
    with called_with_pipes(host, tmp_path, *range(1, 10)) as pipes:
        wait_until((tmp_path / "pwd").exists, "its start")
        for number, pipe in pipes.items():
            assert has_ended(pipe), f"descriptor {number} is held open"
    wait_until(lambda: (tmp_path / "pwd").read_text() == "/\n", "its directory")


def test_it_does_not_wait_for_anything(port: Port, host: Hooked) -> None:
    """The program hangs, syslog hangs: it returns, and so does the next one."""
    host.program.write_text("#!/bin/sh\nsleep 300\n")
    with host.syslog.stuck():
        for _ in range(30):
            host.call("start", "eth0")
            host.call("stop", "eth0")
            host.call("start", "not/a name")
    # Each complaint comes when somebody reads again.
    wait_until(lambda: len(host.complaints()) >= 30, "thirty complaints")
    assert set(host.complaints()) == {"hook: not/a name: not an interface name"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "a b", "a:1", "-x", "x" * 16])
def test_what_is_no_interface_name(host: Hooked, name: str) -> None:
    host.call("start", name)
    host.syslog.wait_line(f"hook: {re.escape(name)}: not an interface name")
    assert machine.read(host.host, "/run/autoip-hooks") == ""
    assert host.host.run("sh", "-c", "ls -A /run/autoip-hooks 2>&-; true") == ""
    assert host.starts() == []


@pytest.mark.parametrize("name", ["x" * 15, "a.b-c_d@e", "$(id)", "*", "a'b\"c", "\\", "ä"])
def test_what_is_one(make_host: MakeHost, make_hooked: MakeHooked, name: str) -> None:
    port = make_host()
    port.host.run("ip", "link", "set", "eth0", "name", name)
    host = make_hooked(port.host)
    host.install("--client", "dhclient")
    host.call("start", name)
    wait_until(lambda: len(port.host.addresses(name)) == 1, "an address")
    host.call("stop", name)
    wait_until(lambda: not port.host.addresses(name), "none")
    assert host.starts() == [f"run --hook {name}"]
    assert host.complaints() == []


def test_a_system_without_flock(host: Hooked) -> None:
    host.host.run("mount", "--bind", "/dev/null", os.path.realpath(str(find_program("flock"))))
    host.call("start", "eth0")
    host.syslog.wait_line("hook: eth0: flock and setsid of util-linux are needed")
    assert len(host.complaints()) == 1
    assert host.starts() == []


FULL = "mount -t tmpfs -o size=4k,mode=755 full /run; dd if=/dev/zero of=/run/full bs=4k 2>&-; true"
BROKEN = {
    "no interpreter": ("echo '#!/nowhere/python3' >{program}", "{program} cannot be run"),
    "no program": ("rm {program}", "{program} cannot be run"),
    "status 1": (
        "printf '#!/bin/sh\necho Traceback >&2; exit 1\n' >{program}",
        "{program} run --hook eth0 ended with status 1",
    ),
    "configuration": (
        "printf '[*]\npolicy = sometimes\n' >/etc/autoip.conf",
        "/etc/autoip.conf:2: policy sometimes: ",
    ),
    "full": (FULL, "cannot write /run/autoip-hooks/"),
    "read-only": ("mount -t tmpfs -o ro none /run", "cannot write /run/autoip-hooks/"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_one_line_to_syslog(host: Hooked, what: str) -> None:
    command, says = (text.replace("{program}", str(host.program)) for text in BROKEN[what])
    host.host.run("sh", "-c", command)
    host.call("start", "eth0")
    host.syslog.wait_line(re.escape(says))
    # A daemon that could be started may have its own to say about a full disk; one that dies is started again.
    (line,) = {
        re.sub(r"; starts again in \d+ s$", "", line)
        for line in host.complaints()
        if " lock file " not in line
    }
    assert says in line


def test_lo_is_left_alone_without_a_word(host: Hooked) -> None:
    host.call("start", "lo")
    time.sleep(1)
    assert host.starts() == []
    assert host.syslog.lines == []


def test_its_files_are_root_s_alone(port: Port, host: Hooked) -> None:
    host.call("start", "eth0")
    host.wait_address(port)
    out = host.host.run("sh", "-c", "stat -c '%a %U' /run/autoip-hooks /run/autoip-hooks/*")
    assert set(out.splitlines()) == {"700 root", "600 root"}


def test_two_namespaces_share_run(port: Port, host: Hooked, stack: contextlib.ExitStack) -> None:
    """The same name, another interface."""
    # A program there sees the first host's files, but another network.
    path = f"/proc/{os.getpid()}/task/{port.host.tid}/ns/mnt"
    with Namespace("second") as second:
        port.switch.attach(second)
        command = ["nsenter", f"--mount={path}", "/etc/autoip/hook"]
        host.call("start", "eth0")
        second.run(*command, "start", "eth0")
        host.wait_address(port)
        wait_until(lambda: second.link_local("eth0"), "the second address")
        second.run(*command, "stop", "eth0")
        wait_until(lambda: not second.link_local("eth0"), "its end")
        assert len(port.host.link_local("eth0")) == 1
        wait_until(lambda: not second.processes(), "the end of its daemon")
    assert len(host.daemons("eth0")) == 1


def test_remove_ends_what_hooks_have_started(port: Port, host: Hooked) -> None:
    host.call("start", "eth0")
    host.wait_address(port)
    host.hooks("remove")
    assert port.host.addresses("eth0") == []
    host.wait_ended("eth0")
    assert host.host.run("sh", "-c", "ls -d /run/autoip-hooks /etc/autoip 2>&-; true") == ""


def test_the_configuration_says_no(port: Port, host: Hooked) -> None:
    machine.write(host.host, "/etc/autoip.conf", "[eth*]\nhooks = no\n")
    host.call("start", "eth0")
    host.syslog.wait_line("eth0: not for hooks to start")
    wait_until(lambda: not locked(host, "eth0"), "its end")
    assert port.host.addresses("eth0") == []
    assert host.complaints() == []


# --- other systems' shells and tools ---------------------------------------------------------------

TOOLS = ("env", "flock", "logger", "mkdir", "readlink", "rm", "setsid", "sleep", "timeout")
"""What the script runs beside autoip and systemctl."""


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param("bash", marks=requires_program("bash", "bash")),
        pytest.param("busybox", marks=requires_program("busybox", "busybox")),
    ],
)
def test_another_shell_is_sh(port: Port, host: Hooked, shell: str) -> None:
    host.host.run("mount", "--bind", str(find_program(shell)), os.path.realpath("/bin/sh"))
    if shell == "busybox":
        # Its own tools too.
        host.before_path("/run/tools")
        applets = set(TOOLS) & set(host.host.run(shell, "--list").split())
        assert len(applets) >= len(TOOLS) - 1  # not every build has flock
        links = " ".join(f"ln -s {find_program(shell)} /run/tools/{tool};" for tool in applets)
        host.host.run("sh", "-c", f"mkdir /run/tools; {links}")
    for action in ("start", "stop", "start"):
        hundred = f"for _ in $(seq 20); do /etc/autoip/hook {action} eth0 & done; wait"
        assert host.host.run("sh", "-c", f"({hundred}) 2>&1", timeout=120) == ""
        if action == "start":
            host.wait_address(port)
            assert len(host.daemons("eth0")) == 1
        else:
            host.wait_ended("eth0")
            assert port.host.addresses("eth0") == []
    host.call("start", "a/b")
    host.syslog.wait_line("hook: a/b: not an interface name")
    host.program.unlink()
    host.call("start", "eth7")
    host.syslog.wait_line("hook: eth7: .* cannot be run")
    assert len(host.complaints()) == 2


# --- where systemd runs ------------------------------------------------------------------------------


class Systemd:
    """What the hook sees of systemd: its directory, our unit, a `systemctl` that notes its words."""

    def __init__(self, host: Hooked) -> None:
        self._host, self._log = host.host, host.log
        machine.write(self._host, "/etc/systemd/system/autoip@.service", UNIT.read_text())
        self.state("inactive")
        self.enabled(False)
        script = """#!/bin/sh
            echo "$*" >>/run/systemctl.log
            case $1 in
            show) ! rm /run/systemctl.busy 2>/dev/null && cat /run/systemctl.state ;;
            is-enabled) [ -f /run/systemctl.enabled ] ;;
            --quiet) grep -qx "$3" /run/systemctl.active ;;
            *) [ ! -f /run/systemctl.broken ] ;;
            esac
        """
        machine.write(self._host, "/run/bin/systemctl", script, 0o755)
        host.before_path("/run/bin")
        self._host.run("mkdir", "-p", "/run/systemd/system")

    def state(self, state: str) -> None:
        machine.write(self._host, "/run/systemctl.state", state)

    def enabled(self, yes: bool) -> None:
        self._host.run(
            "touch" if yes else "rm", *(() if yes else ("-f",)), "/run/systemctl.enabled"
        )

    def call(self, action: str, name: str = "eth0", *, manager_is_here: bool = True) -> list[str]:
        """Calls the hook and waits for its work; what systemctl was told, reads left out."""
        # The first process of this PID namespace stands for systemd: it is of this network namespace.
        alone = ["unshare", "--pid", "--fork", "--mount-proc"] if manager_is_here else []
        script = """
            log=$3
            rm -f /run/systemctl.log
            /etc/autoip/hook "$1" "$2" 2>&1
            # Until all has ended that the hook has begun, or a daemon was started.
            for _ in $(seq 300); do
                set -- /proc/[0-9]*
                [ $# -gt 1 ] && ! grep -qs " run " "$log" || break
                sleep 0.1
            done
            cat /run/systemctl.log 2>/dev/null
            true
        """
        words = (action, name, str(self._log))
        out = self._host.run(*alone, "sh", "-c", script, "sh", *words, timeout=60)
        return [line for line in out.splitlines() if not line.startswith(("show ", "is-enabled "))]

    def marker(self, name: str = "eth0") -> str:
        return machine.read(self._host, f"/run/autoip-hooks/unit-{name}")


@pytest.fixture
def systemd(host: Hooked) -> Systemd:
    return Systemd(host)


START, STOP = "start --no-block autoip@eth0", "stop --no-block autoip@eth0"


def test_the_service_is_started_and_stopped(host: Hooked, systemd: Systemd) -> None:
    assert systemd.call("start") == [START]
    assert systemd.marker() == "AUTOIP_HOOK=--hook\n"
    for state in ("active", "activating", "reloading"):
        systemd.state(state)
        assert systemd.call("start") == []
    assert systemd.call("stop") == [STOP]
    assert systemd.marker() == ""
    assert systemd.call("stop") == []
    for state in ("failed", "deactivating"):
        systemd.state(state)
        assert systemd.call("start") == [START]
    assert host.starts() == []
    assert host.complaints() == []


def test_a_service_that_runs_already_is_never_stopped(host: Hooked, systemd: Systemd) -> None:
    systemd.state("active")
    assert systemd.call("start") == []
    assert systemd.marker() == ""
    assert systemd.call("stop") == []


def test_a_service_that_is_enabled_keeps_its_own_options(host: Hooked, systemd: Systemd) -> None:
    systemd.enabled(True)
    assert systemd.call("start") == [START]
    assert systemd.marker() == ""
    assert systemd.call("stop") == []


def test_the_unit_reads_what_the_hook_writes(systemd: Systemd) -> None:
    text = UNIT.read_text()
    assert "\nEnvironmentFile=-/run/autoip-hooks/unit-%i\n" in text
    assert "\nExecStart=autoip run %i $AUTOIP_UP $AUTOIP_HOOK " in text
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStopPost=")]
    script = line.partition("'")[2].rstrip("'").replace("%i", "eth0")
    for result, stays in {"success": "", "signal": "AUTOIP_HOOK=--hook\n"}.items():
        systemd.call("early")
        assert systemd.marker() == "AUTOIP_HOOK=--hook --early\n"
        systemd._host.run("env", f"SERVICE_RESULT={result}", "sh", "-c", script)
        assert systemd.marker() == stays
        systemd._host.run("env", f"SERVICE_RESULT={result}", "sh", "-c", script)
        assert systemd.marker() == stays


def test_a_name_that_no_unit_can_have(port: Port, host: Hooked, systemd: Systemd) -> None:
    port.host.run("ip", "link", "set", "eth0", "name", "a@b")
    assert systemd.call("start", "a@b") == []
    wait_until(lambda: host.starts() == ["run --hook a@b"], "its start")


def test_the_manager_is_of_another_network_namespace(host: Hooked, systemd: Systemd) -> None:
    assert systemd.call("start", manager_is_here=False) == []
    wait_until(lambda: host.starts() == ["run --hook eth0"], "its start")


def test_systemd_without_our_unit(host: Hooked, systemd: Systemd) -> None:
    host.host.run("rm", "/etc/systemd/system/autoip@.service")
    assert systemd.call("start") == []
    wait_until(lambda: host.starts() == ["run --hook eth0"], "its start")


def test_what_is_enabled_is_started_and_what_is_disabled_is_stopped(
    host: Hooked, systemd: Systemd
) -> None:
    """`hooks install` and `hooks remove` of a client that is told names."""

    def hooks(words: str) -> str:
        command = f"rm -f /run/systemctl.log; PATH=/run/bin:$PATH {shlex.join(autoip_command())}"
        log = "grep -v is-active /run/systemctl.log"
        return host.host.run("sh", "-c", f"{command} hooks {words} 2>&1; {log}; true")

    told = hooks(f"install --client networkmanager --program {host.program} eth0 eth1")
    assert told.count("enabled ") == 2
    assert "\nstarted autoip@eth0.service\nstarted autoip@eth1.service\n" in told
    assert told.splitlines()[-3:] == [
        "daemon-reload",
        "--no-block start autoip@eth0.service",
        "--no-block start autoip@eth1.service",
    ]
    told = hooks("remove --client networkmanager")
    assert "stopped autoip@eth1.service" in told
    assert told.splitlines()[-2:] == [
        "--no-block stop autoip@eth0.service",
        "--no-block stop autoip@eth1.service",
    ]
    # A pattern: the one service, which the administrator has enabled and started for other interfaces.
    wants = "/etc/systemd/system/multi-user.target.wants"
    unit = "/etc/systemd/system/autoip.service"
    machine.write(host.host, unit, "")
    machine.write(host.host, "/run/systemctl.active", "autoip.service\nautoip@eth0.service\n")
    host.host.run("mkdir", "-p", wants)
    host.host.run("ln", "-s", unit, wants)
    told = hooks(f"install --client networkmanager --program {host.program} en* eth0 et?1")
    assert told.splitlines()[-3:] == [
        "daemon-reload",
        "reload autoip.service",
        "reload autoip@eth0.service",
    ]
    told = hooks("remove --client networkmanager")
    assert told.splitlines()[-2:] == [
        "--no-block stop autoip@eth0.service",
        "reload autoip.service",
    ]
    host.host.run("rm", f"{wants}/autoip.service")
    hooks(f"install --client networkmanager --program {host.program} en*")
    told = hooks("remove --client networkmanager")
    assert told.endswith("\n--no-block stop autoip.service\n")
    host.host.run("rm", "/run/systemctl.active")
    host.host.run("touch", "/run/systemctl.broken")
    told = hooks(f"install --client networkmanager --program {host.program} eth0")
    assert "note: systemctl start autoip@eth0.service failed: status 1\n" in told


@pytest.mark.parametrize("how", ["broken", "silent"])
def test_systemctl_fails(host: Hooked, systemd: Systemd, how: str) -> None:
    if how == "broken":
        host.host.run("touch", "/run/systemctl.broken")
        says = r"hook: eth0: systemctl start autoip@eth0 failed with status 1"
    else:
        systemd.state("")
        says = r"hook: eth0: systemctl does not report the state of autoip@eth0"
    systemd.call("start")
    host.syslog.wait_line(says)
    assert len(host.complaints()) == 1


def test_systemd_does_not_answer_for_a_moment(host: Hooked, systemd: Systemd) -> None:
    """It executes itself anew, as at its upgrade or by `systemctl daemon-reexec`."""
    host.host.run("touch", "/run/systemctl.busy")
    assert systemd.call("start") == [START]
    assert host.complaints() == []
