"""The tables of options: one row is enough for everything that an option is written in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autoip.commands.run import Arguments
from autoip.errors import UsageError
from autoip.option_table import Option, seconds
from autoip.options import CONFIGURED, RUN, Options
from tools.documents import TABLES, macro, mdoc

ROOT = Path(__file__).resolve().parents[2]

MADE_UP = """\
    Option(
        "made-up",
        "COUNT",
        read=int,
        values=("3", "7"),
        configured=True,
        word="made",
        help="a row of a test; default 3",
        more="See `[POLICY]`.",
    ),
"""

Run = Callable[..., str]


@pytest.fixture
def changed(tmp_path: Path) -> Run:
    """A copy of the tree that differs by one row; what runs Python there and returns what it printed."""
    for name in ("attack", "autoip", "lab", "tools", "share", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    table = tmp_path / "autoip" / "options.py"
    text = table.read_text(encoding="utf-8")
    assert text.count("    DELAY,\n") == 1
    table.write_text(text.replace("    DELAY,\n", f"{MADE_UP}    DELAY,\n"), encoding="utf-8")

    def run(*words: str, status: int = 0) -> str:
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert ended.returncode == status, ended.stdout
        return ended.stdout

    assert run("-c", "import autoip; print(autoip.__file__)").startswith(str(tmp_path))
    return run


def test_one_row_is_read_from_command_line_words_and_configuration(
    changed: Run, tmp_path: Path
) -> None:
    shown = changed("-m", "autoip", "--help")
    assert "  --made-up COUNT       a row of a test; default 3\n" in shown
    assert "ip=ADDRESS made=COUNT delay=MS debug abandon" in " ".join(shown.split())
    assert changed("-m", "autoip", "eth0", "--made-up", "4", status=2) == (
        "autoip: made-up 4: allowed are 3 and 7\n"
    )
    assert changed("-m", "autoip", "-o", "made=3", "--made-up", "7", status=2) == (
        "autoip: --made-up was given as 7 and 3; give one value\n"
    )
    (tmp_path / "a.conf").write_text("[eth0]\nmade-up = 7\n")
    script = """
from pathlib import Path
from autoip import config
from autoip.commands.run import parse
for line in ("--made-up 3", "-o made=3"):
    print(parse(line.split()).choices, config.load(Path("a.conf")).choices("eth0"))
"""
    assert changed("-c", script) == "{'made_up': 3} {'made_up': 7}\n" * 2
    (tmp_path / "a.conf").write_text("[eth0]\nmade-up = 4\n")
    text = changed("-m", "autoip", "eth0", "--config", "a.conf", status=2)
    assert text == "autoip: a.conf:2: made-up 4: allowed are 3 and 7\n"


def test_one_row_is_in_the_documents_and_completions(changed: Run, tmp_path: Path) -> None:
    changed("-m", "tools.documents")
    expected = {
        "docs/usage.md": "| `--made-up COUNT` | `made=COUNT` | a row of a test; default 3 |\n",
        "share/autoip.8": ".It Fl -made-up Ar COUNT\nA row of a test; default 3.\nSee\n.Sx POLICY .\n",
        "share/completions/autoip.bash": 'run:--made-up) offered="3 7" ;;\n',
        "share/completions/_autoip": "'--made-up[a row of a test]:COUNT:(3 7)'\n",
        "share/completions/autoip.fish": "-l made-up -x -a '3 7' -d 'a row of a test'\n",
    }
    for name, line in expected.items():
        assert line in (tmp_path / name).read_text(encoding="utf-8"), name
        assert line not in (ROOT / name).read_text(encoding="utf-8"), name
    manual = (tmp_path / "share" / "autoip.8").read_text(encoding="utf-8")
    assert manual.count(".Op Fl -made-up Ar COUNT\n") == 1
    page = (tmp_path / "share" / "autoip.conf.5").read_text(encoding="utf-8")
    assert (
        page.count(".It Cm made-up No = Ar COUNT\nA row of a test; default 3.\nSee\n.Sy POLICY\n")
        == 1
    )
    assert ".Cm made Ns = Ns Ar COUNT\n" in manual


def test_the_defaults_that_are_shown_are_those_of_an_interface() -> None:
    for option in CONFIGURED.values():
        default = option.combined([])
        assert getattr(Options(), option.field) == default, option.name
        if option.default:
            shown = (
                f"default {option.default}",
                f"`{option.default}`: whatever else there is (the default)",
            )
            assert any(text in option.help for text in shown), option.name


def test_every_row_of_run_has_its_field() -> None:
    for option in RUN:
        if option.configured:
            assert option.field in Options.__slots__
        elif option.implies:
            assert option.implies[0] in CONFIGURED
        elif option.name not in ("o", "version"):
            assert option.field in Arguments.__slots__


def test_names_and_words_are_unique() -> None:
    for options in TABLES.values():
        names = [option.name for option in options]
        assert len(set(names)) == len(names)
    words = [option.word for option in RUN if option.word]
    assert len(set(words)) == len(words)


def test_several_values() -> None:
    same = Option("a", "S", "", read=seconds)
    assert [same.combined([]), same.combined(["1", "1.0"])] == [None, 1.0]
    with pytest.raises(UsageError, match="-a was given as 1 and 2; give one value"):
        same.combined(["1", "2"])
    last = Option("last", "S", "", read=seconds, default="5", repeat="last")
    assert [last.combined([]), last.combined(["x", "2"])] == [5.0, 2.0]
    every = Option("all", "S", "", read=seconds, repeat="all")
    assert [every.combined([]), every.combined(["1", "2", "1"])] == [(), (1.0, 2.0)]
    flag = Option("flag", "", "")
    assert [flag.combined([]), flag.combined(["yes", "yes"])] == [False, True]


@pytest.mark.parametrize("text", ["0", "86400", "2.5", ".5", "5.", "0.0000000001"])
def test_seconds(text: str) -> None:
    assert seconds(text) == float(text)


@pytest.mark.parametrize(
    "text", ["", ".", "-1", "1e3", "nan", "inf", "86400.1", "9" * 400, " 1", "٣"]
)
def test_no_seconds(text: str) -> None:
    with pytest.raises(UsageError, match="0 to 86400"):
        seconds(text)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--after", "Fl -after"),
        ("--policy route-only", "Fl -policy Cm route-only"),
        ("-o", "Fl o"),
        ("FILE", "Ar FILE"),
        ("[BESIDE A DHCP CLIENT]", "Sx BESIDE A DHCP CLIENT"),
        ("syslog(3)", "Xr syslog 3"),
        ("if=IFACE", "Cm if Ns = Ns Ar IFACE"),
        ("/etc/a.conf", "Pa /etc/a.conf"),
        ("fallback", "Cm fallback"),
    ],
)
def test_words_of_the_manual(word: str, expected: str) -> None:
    assert macro(word) == expected


def test_sentences_of_the_manual() -> None:
    text = "One with `--after`: see `[POLICY]`. Two, `avahi`, 0.7 s. `FILE` (three) (`four`)."
    assert mdoc(text).splitlines() == [
        "One with",
        ".Fl -after :",
        "see",
        ".Sx POLICY .",
        "Two,",
        ".Cm avahi ,",
        "0.7 s.",
        ".Ar FILE",
        "(three)",
        ".Pq Cm four .",
    ]
