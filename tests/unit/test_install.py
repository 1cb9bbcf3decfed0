"""`make install` into a folder, what is there, and `make uninstall`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import autoip
from tests.require import requires_program

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "bin/autoip": 0o755,
    "lib/systemd/system/autoip-wait@.service": 0o644,
    "lib/systemd/system/autoip.service": 0o644,
    "lib/systemd/system/autoip@.service": 0o644,
    "lib/sysusers.d/autoip.conf": 0o644,
    "share/bash-completion/completions/autoip": 0o644,
    "share/doc/autoip/examples/90-autoip.rules": 0o644,
    "share/doc/autoip/examples/autoip.init": 0o755,
    "share/doc/autoip/examples/autoip.openrc": 0o755,
    "share/fish/vendor_completions.d/autoip.fish": 0o644,
    "share/man/man5/autoip.conf.5": 0o644,
    "share/man/man8/autoip-hooks.8": 0o644,
    "share/man/man8/autoip.8": 0o644,
    "share/zsh/site-functions/_autoip": 0o644,
}
"""Below PREFIX; and the program's own folder, lib/autoip."""

pytestmark = [
    requires_program("make", "make"),
    pytest.mark.xdist_group("packaging"),
]


def wheel_of(package: str, folder: Path) -> None:
    """The installed package as a wheel again: the test needs no index."""
    distribution = importlib.metadata.distribution(package)
    tags = [
        line.partition(": ")[2]
        for line in (distribution.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    ]
    name = f"{package}-{distribution.version}-{tags[0]}.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and path.suffix != ".pyc" and path.is_file():
                wheel.write(path, str(file))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: a build writes into it."""
    folder = tmp_path_factory.mktemp("install")
    ignore = shutil.ignore_patterns(".*", "*.so", "*.o", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    (folder / "wheels").mkdir()
    for package in ("cffi", "jeepney", "pycparser", "pyroute2"):
        wheel_of(package, folder / "wheels")
    return folder / "source"


def make(source: Path, *words: str) -> None:
    # The environment that `make setup` would make is the one that runs the tests.
    result = subprocess.run(
        ["make", "-o", "setup", f"PY={sys.executable}", *words],
        cwd=source,
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(source.parent / "wheels")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def test_install_and_uninstall(source: Path, tmp_path: Path) -> None:
    destination, prefix = tmp_path / "root", tmp_path / "root" / "opt"
    foreign = prefix / "share" / "man" / "man8" / "other.8"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    before = folders(destination)
    for _ in range(2):  # over an older one as well
        make(source, "install", f"DESTDIR={destination}", "PREFIX=/opt")
    make(source, "install-compat", f"DESTDIR={destination}", "PREFIX=/opt")

    assert folders(destination) > before
    found = {name for name in files(prefix) if not name.startswith("lib/autoip/")}
    compat = {"bin/avahi-autoipd", "share/man/man8/avahi-autoipd.8"}
    assert found == {*FILES, *compat, "share/man/man8/other.8"}
    assert (prefix / "bin/avahi-autoipd").samefile(prefix / "bin/autoip")
    for name, mode in FILES.items():
        assert stat.S_IMODE((prefix / name).stat().st_mode) == mode, name
    assert files(destination) == {f"opt/{name}" for name in files(prefix)}
    own = {path.name for path in (prefix / "lib" / "autoip").iterdir()}
    assert {"autoip", "cffi", "jeepney", "pyroute2"} <= own
    assert "bin" not in own
    examples = prefix / "share" / "doc" / "autoip" / "examples"
    assert "\nPROGRAM=/opt/bin/autoip\n" in (examples / "autoip.init").read_text()
    assert ' --exec "/opt/bin/autoip" -- ' in (examples / "autoip.openrc").read_text()
    units = prefix / "lib" / "systemd" / "system"
    assert "\nExecStart=/opt/bin/autoip run %i " in (units / "autoip@.service").read_text()
    assert "\nExecReload=/opt/bin/autoip reload %i\n" in (units / "autoip@.service").read_text()
    assert "\nExecStart=/opt/bin/autoip wait %i\n" in (units / "autoip-wait@.service").read_text()
    for name in files(destination):
        path = destination / name
        if path.suffix not in {".so", ".pyc"} and path.stat().st_size < 1 << 20:
            assert str(destination).encode() not in path.read_bytes(), name

    make(source, "uninstall", f"DESTDIR={destination}", "PREFIX=/opt")
    assert files(destination) == {"opt/share/man/man8/other.8"}
    assert folders(destination) == before


def test_uninstall_leaves_folders_that_were_there_or_are_used(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "lib" / "systemd"
    there.mkdir(parents=True)
    # The program is not needed to try this.
    targets = ["install", "-o", "install-program", f"PREFIX={tmp_path}"]
    make(source, *targets)
    used = tmp_path / "share" / "fish" / "vendor_completions.d" / "other.fish"
    used.touch()
    make(source, "uninstall", f"PREFIX={tmp_path}")
    assert files(tmp_path) == {str(used.relative_to(tmp_path))}
    expected = {"lib", "lib/systemd", "share", "share/fish", "share/fish/vendor_completions.d"}
    assert folders(tmp_path) == expected


def test_the_installed_program_runs_by_itself(source: Path, tmp_path: Path) -> None:
    make(source, "install-program", f"PREFIX={tmp_path}")
    # Neither this tree nor the environment of the caller may be what makes it work.
    hostile = tmp_path / "hostile"
    (hostile / "autoip").mkdir(parents=True)
    (hostile / "autoip" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    program = tmp_path / "bin" / "autoip"
    environ = {"PATH": "/nowhere", "PYTHONPATH": str(hostile), "PYTHONHOME": "/nowhere"}
    for words, status, says in (
        (["--version"], 0, f"autoip {autoip.__version__}\n"),
        (["status", "no-such-one"], 3, "no-such-one  not-running  -"),
    ):
        result = subprocess.run(
            [str(program), *words],
            cwd=hostile,
            env={**environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stderr) == (status, "")
        assert says in result.stdout
    # The hooks that it installs start it, from wherever it was called.
    image = tmp_path / "image"
    image.mkdir()
    words = ["hooks", "install", "--client", "dhclient", "--root", str(image)]
    told = subprocess.run([program, *words], env=environ, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    assert f"\nAUTOIP={program}\n" in (image / "etc/autoip/hook").read_text()
    assert (image / "etc/dhcp/dhclient-exit-hooks.d/autoip").is_file()
    code = program.read_text().splitlines()[0].removeprefix("#!").split()
    names = ("autoip", "cffi", "jeepney", "pyroute2")
    modules = f"import {', '.join(names)}; print({', '.join(f'{name}.__file__' for name in names)})"
    here = f"import sys; sys.path.insert(0, {str(tmp_path / 'lib' / 'autoip')!r}); {modules}"
    result = subprocess.run([*code, "-c", here], capture_output=True, text=True, env=environ)
    assert [Path(name).parents[1].name for name in result.stdout.split()] == ["autoip"] * 4


def test_data_alone_for_a_packager(source: Path, tmp_path: Path) -> None:
    make(source, "install-data", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert files(tmp_path) == {f"usr/{name}" for name in FILES if name != "bin/autoip"}


def test_everything_in_share_is_installed() -> None:
    text = (ROOT / "Makefile").read_text()
    rules = text[text.index("\ninstall-program:") : text.index("\nuninstall:")]
    for name in files(ROOT / "share"):
        assert f"share/{name}" in rules or (name in rules and name.endswith(".service")), name
