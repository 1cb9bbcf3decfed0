"""The manual: well-formed, complete, and what `--help` says."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from autoip import config, errors, options
from autoip.commands import arguments, main
from autoip.control import protocol
from autoip.dhcp.clients import CLIENTS
from tests.require import requires_program
from tools.documents import CONFIGURATION, HOOKS, MANUAL, PARTS, README, renewed

PAGES = sorted(MANUAL.parent.glob("*.[58]"))

HELP = {("-h", ""), ("--help", "")}

Options = set[tuple[str, str]]


def of_help(command: str, capsys: pytest.CaptureFixture[str]) -> Options:
    """(option, placeholder of its value or nothing) as `--help` shows them."""
    assert main.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: autoip ")
    lines = re.findall(r"^  (-\S.*?)(?:  .*)?$", text.split("\n\nexamples:")[0], re.MULTILINE)
    found: Options = set()
    for item in (item for line in lines for item in line.split(", ")):
        option, _, value = item.partition(" ")
        found.add((option, value))
    return found


def of_manual() -> dict[str, Options]:
    """The options that the subsection of each command describes."""
    found: defaultdict[str, Options] = defaultdict(set)
    section = command = ""
    # The options of `hooks` have a page of their own.
    hooks = HOOKS.read_text().split(".Sh OPTIONS\n")[1].split(".Sh ")[0]
    text = MANUAL.read_text().replace(".Ss hooks\n", f".Ss hooks\n{hooks}")
    for line in text.splitlines():
        if line.startswith(".Sh "):
            section, command = line[4:], ""
        elif line.startswith(".Ss ") and section == "COMMANDS":
            command = line[4:]
            found[command] = set()
        elif line.startswith(".It Fl ") and command:
            for item in line[4:].split(" , "):
                _, option, *value = item.split()
                if "Op" in value:  # a value that may be left out
                    found[command].add((f"-{option}[={value[-1]}]", ""))
                else:
                    found[command].add((f"-{option}", value[1] if value else ""))
    return dict(found)


@requires_program("mandoc", "mandoc")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lint(page: Path) -> None:
    result = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", str(page)], capture_output=True, text=True
    )
    assert (result.stdout, result.returncode) == ("", 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_fits_a_terminal_of_80_columns(page: Path) -> None:
    """man(1) warns on the terminal otherwise. A table is indented by 5, as is each column but the first by 4."""
    for line in re.findall(r"^\.Bl -column (.*)$", page.read_text(), re.MULTILINE):
        columns = re.findall(r'"([^"]*)"', line)
        assert 5 + sum(map(len, columns)) + 4 * (len(columns) - 1) <= 78, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_refers_to_pages_and_sections_that_are_there(page: Path) -> None:
    text = page.read_text()
    for name, section in re.findall(r"^\.Xr (\S*autoip\S*) (\d)", text, re.MULTILINE):
        assert (page.parent / f"{name}.{section}").is_file(), f"{name}({section})"
    titles = set(re.findall(r"^\.Sh (.+)$", text, re.MULTILINE))
    for title in re.findall(r"^\.Sx (.+?)(?: [.,;:])?(?: No .*)?$", text, re.MULTILINE):
        # A section of another page is named before that page.
        assert title in titles or f".Sx {title}\nin\n.Xr " in text, title
    assert re.search(rf"^\.Dt {page.stem.upper()} {page.suffix[1:]}$", text, re.MULTILINE)


def test_every_name_of_the_configuration_is_in_its_page() -> None:
    text = CONFIGURATION.read_text()
    for name in [*options.CONFIGURED, *(row.name for row in config.OWN)]:
        assert f"\n.It Cm {name} No = " in text, name


def test_every_client_of_the_hooks_is_in_their_page() -> None:
    text = HOOKS.read_text().split(".Sh CLIENTS\n")[1].split(".Sh ")[0]
    assert re.findall(r"^\.It Cm (\S+)$", text, re.MULTILINE) == list(CLIENTS)


def test_every_option_of_help_is_in_the_manual_and_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    manual = of_manual()
    assert manual.pop("Every command") == HELP
    assert manual == {command: of_help(command, capsys) - HELP for command in arguments.COMMANDS}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command, line in arguments.COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(line)}$", text, re.MULTILINE)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_what_the_code_tells_is_not_stale(path: Path) -> None:
    """If it is: python -m tools.documents."""
    assert path.read_text(encoding="utf-8") == renewed(path)


def test_the_readme_has_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    told = re.findall(r"^\| `autoip ([a-z]+)", text, re.MULTILINE)
    assert sorted(told) == sorted(set(arguments.COMMANDS) - {"run"})


def test_every_field_is_in_the_manual_with_type_and_unit() -> None:
    text = MANUAL.read_text()
    for table in (
        *(protocol.STATUS, protocol.EVENT, protocol.PROBE),
        *(protocol.DOCTOR, protocol.FINDING),
    ):
        for name, field in table.items():
            unit = f", {field.unit}" if field.unit else ""
            assert f".It Cm {name} Pq {field.type}{unit}\n" in text
    for name in [*protocol.STATES, *protocol.EVENTS]:
        assert f".It Cm {name}\n" in text


def test_every_exit_status_is_in_the_manual() -> None:
    text = MANUAL.read_text().split(".Sh EXIT STATUS\n")[1].split(".Sh ")[0]
    kinds = [kind for kind in vars(errors).values() if hasattr(kind, "exit_status")]
    expected = {0} | {kind.exit_status for kind in kinds}
    assert set(map(int, re.findall(r"^\.It (\d)$", text, re.MULTILINE))) == expected
