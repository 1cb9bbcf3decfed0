"""`autoip hooks`: what it writes below a root, what it refuses, and that nothing stays."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autoip import config
from autoip.commands import hooks, main
from autoip.core.policy import Kind
from autoip.dhcp import clients, install, running, trust
from autoip.dhcp.clients import CLIENTS, MARK, SHARED
from autoip.dhcp.image import Image
from autoip.errors import AutoipError, UsageError

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
PROGRAM = "/opt/autoip's place/autoip"

WRAPPED = CLIENTS["udhcpc"].files[0]
"""The file of ours that calls what was there before."""

GROUP = 12345
"""A group that nobody trusts."""

Run = Callable[..., list[str]]


def put_unit(root: Path, name: str = "autoip@") -> None:
    unit = root / f"usr/lib/systemd/system/{name}.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.touch()


def tree(root: Path) -> dict[str, str]:
    """Everything below, with what it is."""

    def told(path: Path) -> str:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return f"-> {os.readlink(path)}"
        content = "" if path.is_dir() else f" {path.read_text()}"
        return f"{stat.S_IMODE(mode):o}{content}"

    return {str(path.relative_to(root)): told(path) for path in sorted(root.rglob("*"))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with dhclient in it, merged /usr, and a directory that ifupdown's package would bring."""
    root = tmp_path / "image"
    (root / "usr" / "sbin").mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    (root / "usr" / "sbin" / "dhclient").touch()
    (root / "etc" / "network" / "if-up.d").mkdir(parents=True)
    (root / "etc" / "udhcpc").mkdir()
    (root / WRAPPED.path.lstrip("/")).write_text("#!/bin/sh\n# the administrator's\n")
    return root


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(words)`: with that root; the lines that it said, the root cut off. A failure is raised."""

    def run(line: str) -> list[str]:
        action, *words = line.split()
        options = ["--root", str(root)]
        options += ["--program", PROGRAM] if action == "install" else []
        assert hooks.main([action, *options, *words]) == 0
        return capsys.readouterr().out.replace(str(root), "").splitlines()

    return run


def test_installed_for_what_is_there(root: Path, run: Run) -> None:
    before = tree(root)
    old = os.umask(0o077)
    try:
        assert run("install") == [
            f"wrote {SHARED}",
            "wrote /etc/dhcp/dhclient-exit-hooks.d/autoip",
            "wrote /etc/dhcp/dhclient-enter-hooks.d/autoip",
            f"note: {PROGRAM} is not there yet",
        ]
    finally:
        os.umask(old)
    after = tree(root)
    assert {path for path in after if path not in before} == {
        "etc/autoip",
        "etc/autoip/hook",
        "etc/autoip/made",
        "etc/dhcp",
        "etc/dhcp/dhclient-enter-hooks.d",
        "etc/dhcp/dhclient-enter-hooks.d/autoip",
        "etc/dhcp/dhclient-exit-hooks.d",
        "etc/dhcp/dhclient-exit-hooks.d/autoip",
    }
    assert {path: after[path] for path in before} == before
    assert after["etc/dhcp"] == "755"
    made = (root / "etc/autoip/made").read_text().splitlines()
    folders = [
        f"/etc/dhcp{name}" for name in ("", "/dhclient-enter-hooks.d", "/dhclient-exit-hooks.d")
    ]
    assert made[2:] == [f"directory {folder}" for folder in folders]
    exit_hook = root / "etc/dhcp/dhclient-exit-hooks.d/autoip"
    assert exit_hook.read_bytes() == (HOOKS / "dhclient").read_bytes()
    assert stat.S_IMODE(exit_hook.stat().st_mode) == 0o644
    shared = root / SHARED.lstrip("/")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    # The shell reads the very path.
    line = re.search(r"^AUTOIP=.*$", shared.read_text(), re.MULTILINE)
    assert line is not None
    told = subprocess.run(
        ["sh", "-c", f'{line[0]}; echo "$AUTOIP"'], capture_output=True, text=True
    )
    assert told.stdout == f"{PROGRAM}\n"


@pytest.mark.parametrize(
    ("what", "mode", "user"),
    [
        ("opt", 0o777, 0),
        ("opt", 0o775, 0),
        ("opt/venv/bin", 0o755, 1000),
        ("opt/venv/bin/autoip", 0o757, 0),
        ("opt/venv/bin/autoip", 0o755, 1000),
        ("opt/venv/python", 0o775, 0),
        ("link", 0o777, 1000),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for other owners")
def test_a_program_that_others_may_write(
    root: Path, capsys: pytest.CaptureFixture[str], what: str, mode: int, user: int
) -> None:
    """The program, a folder above it, its interpreter, a link to it: refused, and nothing is written."""
    (root / "opt/venv/bin").mkdir(parents=True)
    program = root / "opt/venv/bin/autoip"
    program.write_text("#!/opt/venv/python -I\n")
    (root / "opt/venv/python").touch()
    (root / "link").symlink_to("/opt/venv/bin/autoip")
    for path in (
        root / "opt",
        root / "opt/venv",
        program.parent,
        program,
        root / "opt/venv/python",
    ):
        path.chmod(0o755)
    words = ["install", "--root", str(root), "--program", "/link"]
    before = tree(root)
    os.chown(root / what, user, GROUP, follow_symlinks=False)
    if what != "link":
        (root / what).chmod(mode)
    with pytest.raises(AutoipError, match=f"{root}/{what}: belongs to user .* nothing was changed"):
        hooks.main(words)
    os.chown(root / what, 0, 0, follow_symlinks=False)
    if what != "link":
        (root / what).chmod(0o755)
    assert tree(root) == before
    assert hooks.main(words) == 0
    capsys.readouterr()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for other owners")
def test_the_package_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir(mode=0o755)
    (package / "module.py").touch()
    os.chown(package / "module.py", 1000, 1000)
    monkeypatch.setattr(hooks, "_PACKAGE", str(package))
    monkeypatch.setattr(hooks, "_program", lambda: PROGRAM)
    monkeypatch.setattr(install, "install", lambda *_, **__: [])
    with pytest.raises(AutoipError, match=r"module\.py: belongs to user .*, mode"):
        hooks.main(["install"])


def test_staff_may_write_below_usr_local() -> None:
    """Debian trusts this group with what root's PATH finds; nowhere else."""
    of_staff = (0, 50, stat.S_IFDIR | 0o2775)
    assert not trust.others_may_write("/usr/local", *of_staff)
    assert not trust.others_may_write("/usr/local/bin", *of_staff)
    assert trust.others_may_write("/usr/locals", *of_staff)
    assert trust.others_may_write("/opt", *of_staff)


def test_again_changes_nothing(root: Path, run: Run) -> None:
    run("install")
    inode = (root / "etc/autoip/hook").stat().st_ino
    before = tree(root)
    assert run("install")[:2] == [
        f"unchanged {SHARED}",
        "unchanged /etc/dhcp/dhclient-exit-hooks.d/autoip",
    ]
    assert tree(root) == before
    assert (root / "etc/autoip/hook").stat().st_ino == inode


def test_an_older_one_of_ours_and_its_mode_are_put_right(root: Path, run: Run) -> None:
    run("install")
    before = tree(root)
    hook = root / "etc/dhcp/dhclient-exit-hooks.d/autoip"
    hook.write_bytes(b"#!/bin/sh" + MARK + b"old\n")
    (root / "etc/autoip/hook").chmod(0o644)
    assert run("install")[:2] == [f"wrote {SHARED}", f"wrote /{hook.relative_to(root)}"]
    assert tree(root) == before


@pytest.mark.parametrize("client", CLIENTS)
def test_remove_leaves_no_trace(root: Path, run: Run, client: str) -> None:
    before = tree(root)
    run(f"install --client {client}")
    assert all((root / path.lstrip("/")).exists() for path in paths(client))
    said = run("remove")
    assert tree(root) == before
    verb = "restored" if client == "udhcpc" else "removed"
    assert set(said) == {f"removed {SHARED}", *(f"{verb} {path}" for path in paths(client))}
    assert run("remove") == []


def paths(client: str) -> list[str]:
    return [file.path for file in CLIENTS[client].files]


def test_what_the_client_has_to_be_told_is_told(root: Path, run: Run) -> None:
    note = "note: dhcpcd: /etc/dhcpcd.conf has to say noipv4ll"
    assert note in run("install --client dhcpcd")
    (root / "etc/dhcpcd.conf").write_text("# noipv4ll\nnoipv4llx\n")
    assert note in run("install --client dhcpcd")
    (root / "etc/dhcpcd.conf").write_text("duid\n  noipv4ll # ours\n")
    assert note not in run("install --client dhcpcd")


def test_one_of_two_is_removed(root: Path, run: Run) -> None:
    before = tree(root)
    run("install --client ifupdown")
    one = tree(root)
    run("install")
    run("remove --client dhclient")
    assert tree(root) == one
    run("remove --client dhclient")
    assert tree(root) == one
    run("remove --client ifupdown")
    assert tree(root) == before


def test_a_directory_that_somebody_else_uses_stays(root: Path, run: Run) -> None:
    run("install")
    (root / "etc/dhcp/other").touch()
    (root / "etc/autoip/other").touch()
    run("remove")
    assert (root / "etc/dhcp/other").exists()
    assert not (root / "etc/dhcp/dhclient-exit-hooks.d").exists()
    assert [path.name for path in (root / "etc/autoip").iterdir()] == ["other"]


def test_what_ours_calls_is_kept_and_put_back(root: Path, run: Run) -> None:
    path, kept = (root / name.lstrip("/") for name in (WRAPPED.path, WRAPPED.keeps))
    path.chmod(0o750)
    before, status = tree(root), path.stat()
    assert f"kept {WRAPPED.keeps}: " in "\n".join(run("install --client udhcpc"))
    assert MARK in path.read_bytes()
    assert kept.stat().st_ino == status.st_ino
    assert kept.read_text().endswith("# the administrator's\n")
    assert WRAPPED.keeps in path.read_text()
    installed = tree(root)
    assert f"unchanged {WRAPPED.path}" in run("install --client udhcpc")
    assert tree(root) == installed
    assert run("list --client udhcpc")[1].split()[2] == "installed"
    run("remove")
    assert tree(root) == before
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert run("list --client udhcpc")[1].split()[2] == "no"


def test_a_link_that_ours_calls_is_kept_as_it_is(root: Path, run: Run) -> None:
    path = root / WRAPPED.path.lstrip("/")
    path.unlink()
    path.symlink_to("mine.script")
    before = tree(root)
    run("install --client udhcpc")
    assert os.readlink(root / WRAPPED.keeps.lstrip("/")) == "mine.script"
    run("remove")
    assert tree(root) == before


def test_an_interrupted_install_goes_on(root: Path, run: Run) -> None:
    before = tree(root)
    os.link(root / WRAPPED.path.lstrip("/"), root / WRAPPED.keeps.lstrip("/"))
    half = tree(root)
    run("install --client udhcpc")
    run("remove")
    assert tree(root) == before
    os.link(root / WRAPPED.path.lstrip("/"), root / WRAPPED.keeps.lstrip("/"))
    assert tree(root) == half
    run("remove")
    assert tree(root) == before


@pytest.mark.parametrize(
    ("path", "kept", "says"),
    [
        (None, None, "install the client first"),
        ("new", "old", "remove one of them"),
        (MARK.decode(), None, "is gone"),
    ],
)
def test_nothing_is_wrapped_that_is_not_clear(
    root: Path, run: Run, path: str | None, kept: str | None, says: str
) -> None:
    """A package that was upgraded puts its own script in our place, for instance."""
    for name, text in ((WRAPPED.path, path), (WRAPPED.keeps, kept)):
        file = root / name.lstrip("/")
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
    before = tree(root)
    with pytest.raises(AutoipError, match=says):
        run("install --client udhcpc")
    assert tree(root) == before


def test_what_is_newer_than_ours_stays(root: Path, run: Run) -> None:
    run("install --client udhcpc")
    path, kept = (root / name.lstrip("/") for name in (WRAPPED.path, WRAPPED.keeps))
    path.write_text("newer")
    assert f"left {WRAPPED.keeps}: " in "\n".join(run("remove"))
    assert path.read_text() == "newer"
    assert kept.read_text().endswith("# the administrator's\n")


FOREIGN = {
    "a file": lambda path: path.write_text("#!/bin/sh\n# autoip hooks\n"),
    "a link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_stops_everything(
    root: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
) -> None:
    path = root / "etc/network/if-down.d/autoip"
    path.parent.mkdir()
    make(path)
    before = list(root.rglob("*"))
    words = ["hooks", "install", "--root", str(root), "--program", PROGRAM]
    words += ["--client", "dhclient", "--client", "ifupdown"]
    assert main.main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"autoip: {path}: is ")
    assert "nothing was changed; move it away" in err
    assert err.count("\n") == 1
    assert list(root.rglob("*")) == before
    # Without that client it is no obstacle, and it is left where it is.
    run("install --client dhclient")
    assert "left /etc/network/if-down.d/autoip" in "\n".join(run("remove"))
    assert list(root.rglob("*")) == before


def test_notes_that_are_not_ours_stop_everything(root: Path, run: Run) -> None:
    """`made` holds what to remove in the end: a file of somebody else there is neither read nor replaced."""
    notes = root / "etc/autoip/made"
    notes.parent.mkdir()
    notes.write_text("directory /etc\n")
    before = tree(root)
    for line in ("install", "remove"):
        with pytest.raises(AutoipError, match="autoip/made: is there and not autoip's"):
            run(line)
    assert tree(root) == before


def test_a_link_that_the_administrator_changed_stays(root: Path, run: Run) -> None:
    put_unit(root)
    run("install --client dhclient --client networkmanager eth0 eth1")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    ours, theirs = (wants / f"autoip@{name}.service" for name in ("eth0", "eth1"))
    theirs.unlink()
    theirs.symlink_to("/etc/systemd/system/another.service")
    run("remove --client networkmanager")
    assert not ours.is_symlink()
    assert os.readlink(theirs) == "/etc/systemd/system/another.service"
    theirs.unlink()
    theirs.symlink_to("/usr/lib/systemd/system/autoip@.service")
    run("remove")
    assert theirs.is_symlink()


def test_hooks_of_an_image_have_started_nothing_here(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "run" / "unit-eth0"
    here.parent.mkdir()
    here.touch()
    monkeypatch.setattr(install, "_RUN", str(here.parent))
    run("install")
    run("remove")
    assert here.exists()


def test_a_link_to_a_program_is_followed(root: Path, run: Run) -> None:
    """In the image: a DHCP client whose program is an applet, or an alternative, is installed."""
    (root / "usr/sbin/ifup").symlink_to("/bin/applets")
    assert run("list --client ifupdown")[1].split()[1] == "no"
    (root / "bin").mkdir()
    (root / "bin/applets").touch()
    assert run("list --client ifupdown")[1].split()[1] == "yes"


def test_no_link_leads_out_of_the_root(root: Path, run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "etc/dhcp").symlink_to(outside)
    (root / "etc/autoip").symlink_to("../../../../../../srv")
    # Both are links of the image: what they mean is below the root.
    within = root / str(outside).lstrip("/")
    within.mkdir(parents=True)
    (root / "srv").mkdir()
    run("install")
    assert list(outside.iterdir()) == []
    assert (within / "dhclient-exit-hooks.d/autoip").is_file()
    assert (root / "srv/hook").is_file()


def test_the_root_of_this_machine_is_not_missing() -> None:
    assert Image("/").missing(["/etc/no-such-folder/inner/file", "/file"]) == [
        "/etc/no-such-folder",
        "/etc/no-such-folder/inner",
    ]


def test_a_loop_of_links_is_told(root: Path, run: Run) -> None:
    (root / "etc/dhcp").symlink_to("dhcp")
    with pytest.raises(AutoipError, match="Too many levels"):
        run("install")


def test_when_the_disk_is_full_nothing_is_left(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(root)
    chmod = os.fchmod
    written: list[int] = []

    def full(file: int, mode: int) -> None:
        chmod(file, mode)
        written.append(file)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(AutoipError, match=r"dhclient-exit-hooks.d/autoip: No space"):
        run("install")
    assert len(written) == 3  # the notes, the shared script, and this
    assert tree(root) == before


CHANGES = (
    "mkdir",
    "chmod",
    "open",
    "fchmod",
    "fsync",
    "link",
    "symlink",
    "replace",
    "unlink",
    "rmdir",
)
"""The functions of `os` that change something."""


def killed(number: int, call: Callable[[], object]) -> bool:
    """Run `call` in a process that is killed before its change of that number. Return whether it came so far."""
    if (pid := os.fork()) == 0:
        try:
            count = 0

            def counted(change: Callable[..., object]) -> Callable[..., object]:
                def changed(*words: object, **named: object) -> object:
                    nonlocal count
                    count += 1
                    if count == number:
                        os._exit(9)
                    return change(*words, **named)

                return changed

            for name in CHANGES:
                setattr(os, name, counted(getattr(os, name)))
            call()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.usefixtures("special")
def test_killed_at_any_moment(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next install completes it, the next remove undoes it; no unit is enabled before its files are there.

    Of the 300 moments every third one; `make chaos` kills at any.
    """
    put_unit(root)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them would take a minute
    before = tree(root)
    words = "install --client special --client udhcpc eth0"
    run(words)
    whole = tree(root)
    run("remove")
    assert tree(root) == before
    link, conf = (
        "etc/systemd/system/multi-user.target.wants/autoip@eth0.service",
        "etc/special/conf.d/autoip.conf",
    )
    moment = 1
    while killed(moment, lambda: run(words)):
        half = tree(root)
        assert link not in half or conf in half
        if moment % 2:
            run(words)
            assert tree(root) == whole, moment
        run("remove")
        assert tree(root) == before, moment
        moment += 3
    assert moment > 30
    # And a removal.
    run("remove")
    for moment in range(1, 1000, 3):
        run(words)
        if not killed(moment, lambda: run("remove")):
            break
        run("remove")
        assert tree(root) == before, moment
    assert moment > 10


def test_killed_and_then_another_client(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An install for one DHCP client takes away what a killed one for another has left under temporary names."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = tree(root)
    left = 0
    for moment in range(1, 1000, 4):
        if not killed(moment, lambda: run("install --client networkd-dispatcher")):
            break
        left += any(path.endswith(".autoip-new") for path in tree(root))
        run("install --client dhclient")
        assert not [path for path in tree(root) if path.endswith(".autoip-new")], moment
        run("remove")
        assert tree(root) == before, moment
    assert left > 2


@pytest.mark.usefixtures("special")
def test_files_reach_the_disk_before_the_link(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file before its name, each name before the unit is enabled: whatever a power cut leaves is whole."""
    put_unit(root)
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def replaced(old: str, new: str, **named: int) -> None:
        done.append(("replace", new))
        replace(old, new, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    run("install --client special eth0")
    names = [name for what, name in done if what == "replace"]
    assert (names[0], names[-1]) == ("made", "autoip@eth0.service")
    for name in names[:-1]:
        assert done.index(("fsync", f".{name}.autoip-new")) < done.index(("replace", name))
    enabled = done.index(("replace", "autoip@eth0.service"))
    folders = {"autoip", "conf.d"}
    assert folders <= {name for what, name in done[:enabled] if what == "fsync"}
    last = max(n for n, (what, _) in enumerate(done[:enabled]) if what == "replace")
    assert {name for what, name in done[last:enabled] if what == "fsync"} >= folders
    assert done[-1] == ("fsync", "multi-user.target.wants")


def test_list(root: Path, run: Run) -> None:
    def hooks_of(client: str) -> list[str]:
        rows = {line.split()[0]: line.split()[1:] for line in run("list")}
        return rows[client]

    assert run("list")[0].split() == ["CLIENT", "PRESENT", "HOOKS", "FILES"]
    assert [line.split()[0] for line in run("list")[1:]] == list(CLIENTS)
    assert hooks_of("dhclient") == ["yes", "no", *CLIENTS["dhclient"].paths]
    assert hooks_of("ifupdown") == ["no", "no", *CLIENTS["ifupdown"].paths]
    run("install --client ifupdown")
    assert hooks_of("ifupdown")[:2] == ["no", "installed"]
    (root / "etc/network/if-up.d/autoip").unlink()
    assert hooks_of("ifupdown")[:2] == ["no", "partly"]
    (root / "etc/network/if-up.d/autoip").write_text("another")
    assert hooks_of("ifupdown")[:2] == ["no", "foreign"]
    assert len(run("list --client dhclient")) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "ACTION is missing; allowed are install, remove, list"),
        ("add", "add: allowed are install, remove, list"),
        ("install --client dhclinet", "allowed are dhclient, "),
        ("install --client dhclient eth0", "none of dhclient is told names"),
        ("install --client dhclient eth/0", "1 to 15 bytes"),
        ("install --client dhclient --program autoip", "not an absolute path"),
        ("install --client networkmanager e[tn]*", "only the patterns '*' and '?'"),
        ("remove eth0", "takes no IFACE"),
        ("list --no-conf", "takes no IFACE"),
        ("remove --program /bin/autoip", "takes no IFACE"),
    ],
)
def test_refused(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["hooks", *line.split()]) == UsageError.exit_status
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)


def test_no_client_at_all(tmp_path: Path) -> None:
    with pytest.raises(AutoipError, match="no DHCP client is installed"):
        hooks.main(["install", "--root", str(tmp_path), "--program", PROGRAM])
    with pytest.raises(AutoipError, match="No such file"):
        hooks.main(["install", "--root", str(tmp_path / "nowhere")])


def test_the_program_that_runs_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "bin" / "autoip"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/autoip", "hooks"])
    assert hooks._program() == str(installed)
    # python -m autoip
    monkeypatch.setattr("sys.argv", ["/src/autoip/__main__.py", "hooks"])
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    assert hooks._program() == str(installed)
    installed.chmod(0o644)
    with pytest.raises(UsageError, match="--program PATH"):
        hooks._program()


def test_every_file_has_its_row_and_its_mark() -> None:
    rows = [file for client in CLIENTS.values() for file in client.files]
    assert {path.name for path in HOOKS.iterdir()} == {"hook", *(file.source for file in rows)}
    for path in HOOKS.iterdir():
        text = path.read_bytes()
        assert text.count(MARK) == 1
        assert text.startswith(b"#!/bin/sh\n")
    assert len({file.path for file in rows}) == len(rows)
    # Debian's run-parts takes no other names.
    for file in rows:
        if file.path.startswith(("/etc/dhcp/", "/etc/network/")):
            assert re.fullmatch("[a-zA-Z0-9_-]+", Path(file.path).name)


def test_networkmanager_is_told_of_the_named_interfaces_alone(root: Path, run: Run) -> None:
    before = tree(root)
    run("install --client networkmanager eth0 wlan0")
    conf = (root / "etc/NetworkManager/conf.d/90-autoip.conf").read_text().splitlines()
    assert conf[-5:] == [
        "[main]",
        "autoconnect-retries-default=0",
        "[connection-autoip]",
        "match-device=interface-name:eth0,interface-name:wlan0",
        "ipv4.dhcp-timeout=300",
    ]
    policy = config.load(root / "etc/autoip.conf.d/networkmanager.conf")
    assert policy.choices("eth0") == policy.choices("wlan0") == {"policy": Kind.FALLBACK}
    assert policy.choices("eth1") == {}
    for name in ("90-autoip", "pre-down.d/90-autoip"):
        path = root / "etc/NetworkManager/dispatcher.d" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert (path.stat().st_uid, path.is_symlink()) == (os.getuid(), False)
    run("install --client networkmanager --no-conf eth0")  # takes nothing away
    assert (root / "etc/NetworkManager/conf.d/90-autoip.conf").exists()
    run("remove")
    assert tree(root) == before


def test_names_are_added_to_those_of_earlier_installs(root: Path, run: Run) -> None:
    before = tree(root)
    run("install --client networkmanager eth0 wl*")
    run("install --client networkmanager e* wlan0")
    conf = (root / "etc/NetworkManager/conf.d/90-autoip.conf").read_text()
    names = re.findall("interface-name:([^,\n]+)", conf)
    assert sorted(names) == ["e*", "eth0", "wl*", "wlan0"]
    policy = config.load(root / "etc/autoip.conf.d/networkmanager.conf")
    assert all(policy.choices(name) == {"policy": Kind.FALLBACK} for name in (*names, "eth9"))
    # An interface with a unit of its own is not the one service's, whichever was named first.
    rules = policy.served
    assert set(rules) == {("e*", True), ("wl*", True), ("eth0", False), ("wlan0", False)}
    assert rules.index(("e*", True)) < rules.index(("eth0", False))
    assert rules.index(("wl*", True)) < rules.index(("wlan0", False))
    run("install --client dhclient")
    run("remove")
    assert tree(root) == before
    run("install --client networkmanager eth9")
    assert install.named_before(Image(str(root))) == ["eth9"]


def test_a_later_install_enables_and_names_what_it_was_given_alone(root: Path, run: Run) -> None:
    put_unit(root)
    run("install --client networkmanager eth0")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    (wants / "autoip@eth0.service").unlink()  # systemctl disable
    told = run("install --client networkmanager eth1")
    assert [line.rpartition("/")[2] for line in told if line.startswith("enabled")] == [
        "autoip@eth1.service"
    ]
    assert [path.name for path in wants.iterdir()] == ["autoip@eth1.service"]
    with pytest.raises(UsageError, match=r"^eth2: none of dhclient is told names"):
        run("install --client dhclient eth2")


def test_patterns_are_for_the_one_service(root: Path, run: Run) -> None:
    for name in ("autoip", "autoip@"):
        put_unit(root, name)
    before = tree(root)
    said = run("install --client networkmanager en* eth0 wl?0")
    conf = root / "etc/NetworkManager/conf.d/90-autoip.conf"
    devices = "match-device=interface-name:en*,interface-name:eth0,interface-name:wl?0"
    assert devices in conf.read_text().splitlines()
    policy = config.load(root / "etc/autoip.conf.d/networkmanager.conf")
    assert policy.served == (("en*", True), ("wl?0", True))
    for name in ("enp3s0", "eth0", "wlp2s0"):
        assert bool(policy.choices(name)) is (name != "wlp2s0")
    wants = "etc/systemd/system/multi-user.target.wants"
    links = {path: what for path, what in tree(root).items() if path.startswith(f"{wants}/")}
    assert links == {
        f"{wants}/autoip.service": "-> /usr/lib/systemd/system/autoip.service",
        f"{wants}/autoip@eth0.service": "-> /usr/lib/systemd/system/autoip@.service",
    }
    assert len([line for line in said if line.startswith("enabled ")]) == 2
    run("remove")
    assert tree(root) == before
    # What somebody has enabled stays, and what is somebody's stops everything.
    link = root / wants / "autoip.service"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/autoip.service")
    before = tree(root)
    run("install --client networkmanager en*")
    run("remove")
    assert tree(root) == before
    conf.parent.mkdir(parents=True)
    conf.write_text("[main]\n")
    before = tree(root)
    with pytest.raises(install.NotOurs):
        run("install --client networkmanager en*")
    assert tree(root) == before


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("", ["eth0", "eth1"]),
        ("eth1", ["eth1"]),
        (" wlan0  eth0 ", ["wlan0", "eth0"]),
        ("e*", ["e*"]),
    ],
)
def test_on_a_terminal_it_asks_for_the_names(
    answer: str,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def ask(prompt: str) -> str:
        # What it is about comes first.
        assert "NetworkManager manages: eth0 eth1" in capsys.readouterr().out
        asked.append(prompt)
        return answer

    monkeypatch.setattr("builtins.input", ask)
    assert hooks._chosen(["eth0", "eth1"]) == names
    assert len(asked) == 1
    assert hooks._chosen([]) == []
    assert len(asked) == 1


def test_what_is_no_name_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "eth/0")
    with pytest.raises(UsageError):
        hooks._chosen(["eth0"])


def test_the_devices_of_networkmanager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nmcli"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program.write_text(
        "#!/bin/sh\nprintf '%s\\n' eth0:ethernet:disconnected eth1:ethernet:unmanaged"
        " wlan0:wifi:connected 'docker0:bridge:connected (externally)'\n"
    )
    program.chmod(0o755)
    assert running.networkmanager_devices() == {
        "eth0": "ethernet",
        "wlan0": "wifi",
        "docker0": "bridge",
    }
    program.write_text("#!/bin/sh\necho 'Error: NetworkManager is not running.'; exit 8\n")
    assert running.networkmanager_devices() is None
    program.write_text("#!/nowhere\n")
    assert running.networkmanager_devices() is None


def test_hooks_of_avahi_autoipd_are_named(root: Path, run: Run) -> None:
    foreign = root / "etc/network/if-up.d/avahi-autoipd"
    foreign.write_text("#!/bin/sh\n")
    note = "note: /etc/network/if-up.d/avahi-autoipd starts avahi-autoipd as well: remove one of the two"
    assert note in run("install")
    foreign.unlink()
    assert note not in run("install")


# --- what no client has so far but the table allows ----------------------------------------------


@pytest.fixture
def special(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is told names, and whose interfaces the unit serves."""

    def text(names: object) -> str:
        return f"[main]{MARK.decode()}names={names}\n"

    confs = {"/etc/special/conf.d/autoip.conf": text}
    files = CLIENTS["dhclient"].files
    one = clients.DhcpClient(("/sbin/special",), files, confs=confs)
    monkeypatch.setitem(CLIENTS, "special", one)


@pytest.mark.usefixtures("special")
def test_names_a_conf_and_the_unit(root: Path, run: Run) -> None:
    put_unit(root)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "autoip@eth1.service").symlink_to("/usr/lib/systemd/system/autoip@.service")
    before = tree(root)
    said = run("install --client special eth0 eth1")
    assert "wrote /etc/special/conf.d/autoip.conf" in said
    assert [line for line in said if line.startswith("enabled")] == [
        "enabled /etc/systemd/system/multi-user.target.wants/autoip@eth0.service"
    ]
    after = tree(root)
    assert after["etc/special/conf.d/autoip.conf"].startswith("644 ")
    assert after["etc/special/conf.d/autoip.conf"].endswith("names=('eth0', 'eth1')\n")
    link = "etc/systemd/system/multi-user.target.wants/autoip@eth0.service"
    assert after[link] == "-> /usr/lib/systemd/system/autoip@.service"
    # What the administrator had enabled stays.
    run("remove")
    assert tree(root) == before


@pytest.mark.usefixtures("special")
def test_names_without_a_unit_and_without_conf(root: Path, run: Run) -> None:
    before = tree(root)
    said = run("install --client special --no-conf eth0")
    assert not (root / "etc/special").exists()
    assert "note: autoip@eth0.service was not enabled: " in "\n".join(said)
    run("remove --client special")
    assert tree(root) == before
    said = run("install --client special")
    assert "no interface was named, so /etc/special/conf.d/autoip.conf was not" in "\n".join(said)
    assert not (root / "etc/special").exists()
