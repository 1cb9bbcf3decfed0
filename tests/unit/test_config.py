"""The configuration: what its lines mean, and which are refused."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip import config
from autoip.commands import main, run
from autoip.core.acd import Defence
from autoip.core.policy import Kind
from autoip.errors import UsageError
from autoip.options import Options


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the system in it."""
    monkeypatch.setattr(config, "FILE", tmp_path / "autoip.conf")
    monkeypatch.setattr(config, "FOLDER", tmp_path / "autoip.conf.d")
    (tmp_path / "autoip.conf.d").mkdir()
    return tmp_path


def parsed(folder: Path, text: str) -> config.Config:
    file = folder / "some.conf"
    file.write_text(text)
    return config.load(file)


def test_nothing_there(system: Path) -> None:
    (system / "autoip.conf.d").rmdir()
    found = config.load()
    assert found.choices("eth0") == {}
    assert found.hooks("eth0")


def test_every_choice(tmp_path: Path) -> None:
    text = """
# a comment
; another
[eth0]
ip = 169.254.20.20
abandon = yes
  delay=200
up = no
policy = fallback
after = 2.5
linger = 0
"""
    assert Options(**parsed(tmp_path, text).choices("eth0")) == Options(
        ip=(IPv4Address("169.254.20.20"),),
        defence=Defence.ABANDON,
        delay=200,
        bring_up=False,
        policy=Kind.FALLBACK,
        after=2.5,
        linger=0.0,
    )


def test_all_sections_that_match_count_and_the_last_value_does(tmp_path: Path) -> None:
    text = "[*]\ndelay = 100\nlinger = 5\n[eth[01]]\ndelay = 200\n[eth0]\ndelay = 300\n[wlan?]\nup = yes"
    found = parsed(tmp_path, text)
    assert found.choices("eth0") == {"delay": 300, "linger": 5.0}
    assert found.choices("eth1") == {"delay": 200, "linger": 5.0}
    assert found.choices("eth2") == {"delay": 100, "linger": 5.0}
    assert found.choices("wlan0") == {"delay": 100, "linger": 5.0, "bring_up": True}
    assert found.choices("ETH0") == {"delay": 100, "linger": 5.0}


def test_files_in_order(system: Path) -> None:
    (system / "autoip.conf").write_text("[*]\ndelay = 100\nlinger = 1")
    (system / "autoip.conf.d" / "20-b.conf").write_text("[*]\nlinger = 3")
    (system / "autoip.conf.d" / "10-a.conf").write_text("[*]\nlinger = 2\nafter = 2")
    (system / "autoip.conf.d" / "30-c.conf.old").write_text("[*]\nlinger = 4")
    assert config.load().choices("eth0") == {"delay": 100, "linger": 3.0, "after": 2.0}


@pytest.mark.parametrize(
    ("text", "number", "says"),
    [
        ("delay = 200", 1, "delay: not inside an [INTERFACE] section"),
        ("[eth0]\n\npolicy = falback", 3, "alongside, fallback, route-only"),
        (
            "[eth0]\npolcy = fallback",
            2,
            "ip, range, exclude, delay, abandon, up, policy, after, linger",
        ),
        ("[eth0]\ndelay", 2, "NAME = VALUE"),
        ("[eth0]\ndelay =", 2, "1 to 8000"),
        ("[eth0]\ndelay = 200 # fast", 2, "1 to 8000"),
        ("[eth0]\nabandon = true", 2, "yes and no"),
        ("[eth0]\nip = 169.254.0.1", 2, "169.254.1.0 to 169.254.254.255"),
        ("[eth0]\nlinger = -1", 2, "0 to 86400"),
        ("[eth0]\nhooks = maybe", 2, "yes and no"),
        ("[eth0 eth1]\nup = yes", 1, "[INTERFACE]"),
        ("[eth0", 1, "[INTERFACE]"),
        ("[]", 1, "[INTERFACE]"),
        ("[eth0]\n\xff\xfe", 2, "NAME = VALUE"),
    ],
)
def test_bad_line_is_told_with_its_number(
    tmp_path: Path, text: str, number: int, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(tmp_path, text)
    assert f"some.conf:{number}: " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.load(tmp_path / "missing.conf")
    with pytest.raises(UsageError, match="directory"):
        config.load(tmp_path)


def test_endless_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.conf").write_bytes(b"#" * (config._SIZE_MAX + 1))
    with pytest.raises(UsageError, match="larger than"):
        config.load(tmp_path / "large.conf")


@pytest.mark.parametrize("interface", ["docker0", "docker_gwbridge", "veth12ab", "br-0a1b2c3d4e5f"])
def test_hooks_leave_containers_alone_unless_named(tmp_path: Path, interface: str) -> None:
    assert not parsed(tmp_path, "").hooks(interface)
    assert not parsed(tmp_path, "[*]\nhooks = yes").hooks(interface)
    assert not parsed(tmp_path, f"[{interface}]\ndelay = 200").hooks(interface)
    assert parsed(tmp_path, f"[{interface}]\nhooks = yes").hooks(interface)
    assert parsed(tmp_path, f"[{interface[:4]}*]\nhooks = yes").hooks(interface)
    assert not parsed(tmp_path, f"[{interface}]\nhooks = yes\n[*]\nhooks = no").hooks(interface)


def test_hooks_for_some(tmp_path: Path) -> None:
    found = parsed(tmp_path, "[*]\nhooks = no\n[eth*]\nhooks = yes\n[eth7]\nhooks = no")
    assert [found.hooks(name) for name in ("wlan0", "eth0", "eth7")] == [False, True, False]


def options(line: str, text: str, folder: Path) -> Options:
    return run.options_of("eth0", run.parse(line.split()), parsed(folder, text))


def test_command_line_wins_over_configuration_and_that_over_the_defaults(tmp_path: Path) -> None:
    assert options("eth0", "", tmp_path) == Options()
    text = "[eth0]\npolicy = fallback\nlinger = 7\nabandon = yes"
    found = options("eth0 --linger 8", text, tmp_path)
    assert (found.policy, found.linger, found.after) == (Kind.FALLBACK, 8.0, 10.0)
    assert found.defence is Defence.ABANDON


def test_hook_has_defaults_of_its_own(tmp_path: Path) -> None:
    found = options("eth0 --hook", "", tmp_path)
    assert (found.policy, found.after) == (Kind.FALLBACK, 0.0)
    found = options("eth0 --hook --early", "", tmp_path)
    assert (found.policy, found.after) == (Kind.FALLBACK, 10.0)
    found = options("eth0 --hook --early", "[eth0]\nafter = 0", tmp_path)
    assert found.after == 0.0
    found = options("eth0 --hook", "[eth0]\npolicy = alongside\nafter = 5", tmp_path)
    assert (found.policy, found.after) == (Kind.ALONGSIDE, 5.0)


def test_dry_run_tells_where_each_option_comes_from(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an interface that does not exist as well; nothing is made."""
    file = tmp_path / "some.conf"
    file.write_text("[*]\ndelay = 300\nlinger = 9\n[usb*]\nlinger = 5\n[eth0]\nup = yes\n")
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    line = f"run usb7 usb8 --dry-run --config {file} --delay 200 --abandon --policy fallback"
    assert main.main(line.split()) == 0
    out, err = capfd.readouterr()
    assert err == ""
    head, *rows = [text.split() for text in out.splitlines()]
    assert head == ["INTERFACE", "OPTION", "VALUE", "FROM"]
    expected = [
        ["ip", "-", "default"],
        ["range", "169.254.0.0/16", "default"],
        ["exclude", "169.254.169.0/24,169.254.170.0/24", "default"],
        ["delay", "200", "command", "line"],
        ["abandon", "yes", "command", "line"],
        ["up", "no", "default"],
        ["policy", "fallback", "command", "line"],
        ["after", "10", "default"],
        ["linger", "5", f"{file}:5"],
        ["default-route", "no", "default"],
    ]
    assert [row[1:] for row in rows if row[0] == "usb7"] == expected
    assert [row[1:] for row in rows if row[0] == "usb8"] == expected
    shared = {row[1]: row[2:] for row in rows if row[0] == "all"}
    assert shared["config"] == [str(file), "command", "line"]
    assert shared["no-state"] == ["no", "default"]
    assert [path.name for path in tmp_path.iterdir()] == ["some.conf"]


def test_dry_run_of_a_hook(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.conf"
    file.write_text("[usb7]\nlinger = 5\n")
    assert main.main(f"run usb7 --hook --dry-run --config {file} --linger 3".split()) == 0
    rows = [text.split() for text in capfd.readouterr().out.splitlines()]
    assert ["usb7", "policy", "fallback", "hook"] in rows
    assert ["usb7", "after", "0", "hook"] in rows
    assert ["usb7", "linger", "3", "command", "line"] in rows
    assert ["all", "hook", "yes", "command", "line"] in rows


@pytest.mark.parametrize(
    ("line", "text", "refused"),
    [
        ("eth0 --linger 5", "", True),
        ("eth0 --after 0", "[eth1]\npolicy = fallback", True),
        ("eth0 --linger 5", "[eth0]\npolicy = fallback", False),
        ("eth0 eth1 --linger 5", "[eth1]\npolicy = fallback", False),
        ("eth0 --linger 5 --policy fallback", "", False),
        ("eth0 --linger 5 --hook", "", False),
        ("eth0 --linger 5 --hook", "[eth0]\npolicy = alongside", True),
        ("eth0", "[eth0]\nlinger = 5", False),
        ("--linger 5", "", False),  # which interface is not known yet
    ],
)
def test_linger_and_after_need_fallback(
    tmp_path: Path, line: str, text: str, refused: bool
) -> None:
    arguments = run.parse(line.split())
    expected = pytest.raises(UsageError, match="for --policy fallback")
    with expected if refused else contextlib.nullcontext():
        run.check_policy(arguments.interfaces, arguments, parsed(tmp_path, text))
