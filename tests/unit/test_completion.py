"""The completions, in the shells themselves: what they offer is what the commands understand."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoip.commands import arguments
from autoip.dhcp.clients import CLIENTS
from tests.require import requires_program
from tools.documents import TABLES

SHARE = Path(__file__).resolve().parents[2] / "share" / "completions"
INTERFACES = {path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()}
ACTIONS = {"install", "remove", "list"}
WORDS = {"if=", "ip=", "delay=", "debug", "abandon"}

Offered = Callable[[str], set[str]]


def options(command: str) -> set[str]:
    return {"-h", "--help"} | {
        flag for row in TABLES[command] if not row.operand for flag in row.flags
    }


def type_into(command: list[str], keys: list[str], done: Callable[[], bool]) -> str:
    """Run a shell on a terminal of its own, give it the lines, wait until it is done; what the terminal showed."""
    controller, terminal = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8"}
    shell = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environ,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    until = time.monotonic() + 60
    try:
        for line in keys:
            os.write(controller, line.encode())
        while not done():
            assert time.monotonic() < until, shown.decode(errors="replace")
            if select.select([controller], [], [], 0.05)[0]:
                shown += os.read(controller, 4096)
    finally:
        shell.kill()
        shell.wait()
        os.close(controller)
    return shown.decode(errors="replace")


@pytest.fixture
def bash(tmp_path: Path) -> Offered:
    """Readline's insert-completions puts all that is offered into the line, which is then run."""
    answer = tmp_path / "answer"

    def offered(line: str) -> set[str]:
        program = tmp_path / "autoip"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >{answer}.new\nmv {answer}.new {answer}\n'
        )
        program.chmod(0o755)
        keys = [
            f"PATH={tmp_path}:$PATH; . {SHARE / 'autoip.bash'}\n",
            f"{line}\x1b*\n",
        ]
        type_into(["bash", "--norc", "--noprofile", "-i"], keys, answer.exists)
        kept = line.split()[1:] if line.endswith(" ") else line.split()[1:-1]
        words = answer.read_text().split("\n")[:-1]
        answer.unlink()
        assert words[: len(kept)] == kept
        return set(words[len(kept) :]) - {""}

    return offered


@pytest.fixture
def zsh(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Offered:
    """`compadd` is what hands over each candidate: it is listened to."""
    answer, end = tmp_path / "answer", tmp_path / "end"
    # What zsh found in all of its completions, nearly a thousand files, once for all tests.
    found = tmp_path_factory.getbasetemp() / "zcompdump"
    (tmp_path / ".zshrc").write_text(
        f"""
        PS1='> '
        fpath=({SHARE} $fpath)
        autoload -U compinit
        compinit -u -d {found}
        compadd() {{
            if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
                local -a hits
                builtin compadd -A hits "$@"
                print -rl -- $hits >>{answer}
            fi
            builtin compadd "$@"
        }}
        finished() {{ : >{end} }}
        comppostfuncs=(finished)
        bindkey '^I' complete-word
        """
    )

    def offered(line: str) -> set[str]:
        answer.write_text("")
        end.unlink(missing_ok=True)
        command = ["env", f"ZDOTDIR={tmp_path}", f"HOME={tmp_path}", "zsh", "-d", "-i"]
        type_into(command, [f"{line}\t"], end.exists)
        return {word for word in answer.read_text().splitlines() if word}

    return offered


@pytest.fixture
def fish(tmp_path: Path) -> Offered:
    """fish has a command that tells what it would offer."""

    def offered(line: str) -> set[str]:
        script = f'source {SHARE / "autoip.fish"}; complete -C "{line}"'
        out = subprocess.run(
            ["fish", "--no-config", "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        ).stdout
        return {line.partition("\t")[0] for line in out.splitlines() if line}

    return offered


SHELLS = [
    pytest.param(name, marks=requires_program(name, name)) for name in ("bash", "zsh", "fish")
]


@pytest.fixture(params=SHELLS)
def offered(request: pytest.FixtureRequest) -> Offered:
    found: Offered = request.getfixturevalue(request.param)
    return found


def test_commands_and_interfaces(offered: Offered) -> None:
    assert offered("autoip ") == {*arguments.COMMANDS, *INTERFACES}


def test_options(offered: Offered) -> None:
    for command in arguments.COMMANDS:
        line = "autoip lo -" if command == "run" else f"autoip {command} -"
        # fish offers an option whose value may be left out in both forms.
        assert {word.rstrip("=") for word in offered(line)} == options(command), command


def test_interfaces_of_a_command(offered: Offered) -> None:
    for command in arguments.COMMANDS:
        others = {"hooks": ACTIONS, "help": {*arguments.COMMANDS}, "version": set()}
        others["route"] = set()
        expected = others.get(command, INTERFACES)
        found = offered(f"autoip {command} ")
        # zsh offers the options where there is nothing else.
        assert (found - {"-h", "--help"} if not expected else found) == expected, command
    assert offered("autoip hooks install ") == INTERFACES


def test_a_value_after_an_equals_sign(offered: Offered) -> None:
    """`--json` alone has a value already: none is offered after a blank."""
    found = {word.rpartition("=")[2] for word in offered("autoip status --json=")}
    assert found == {"short", "pretty"}
    assert offered("autoip status --json ") == INTERFACES


def test_a_value_is_no_interface(offered: Offered) -> None:
    assert offered("autoip --script-style ") == {"avahi", "zcip"}
    assert offered("autoip lo --policy ") == {"alongside", "fallback", "route-only"}
    assert offered("autoip hooks install --client ") == set(CLIENTS)
    for line in ("autoip --ip ", "autoip lo --delay ", "autoip wait --timeout "):
        assert offered(line) == set(), line


@requires_program("bash", "bash")
def test_words_of_the_module_in_bash(bash: Offered) -> None:
    assert bash("autoip -o ") == WORDS
    assert bash("autoip -o debug,ab") == {"debug,abandon"}
    assert bash("autoip -o debug,if=l") == {"debug,if=lo"}


@requires_program("zsh", "zsh")
def test_words_of_the_module_in_zsh(zsh: Offered) -> None:
    assert zsh("autoip -o ") == {word.rstrip("=") for word in WORDS}


@requires_program("fish", "fish")
def test_words_of_the_module_in_fish(fish: Offered) -> None:
    expected = (WORDS - {"if="}) | {f"if={name}" for name in INTERFACES}
    assert fish("autoip -o ") == expected
    assert fish("autoip -o debug,ab") == {"debug,abandon"}


@pytest.mark.parametrize("shell", SHELLS)
def test_syntax(shell: str) -> None:
    name = "_autoip" if shell == "zsh" else f"autoip.{shell}"
    subprocess.run([shell, "-n", str(SHARE / name)], check=True)
