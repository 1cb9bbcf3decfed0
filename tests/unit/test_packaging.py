"""The source distribution builds, and from it the wheel; both hold what they should."""

from __future__ import annotations

import email.parser
import email.utils
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import autoip
from tools import release

ROOT = Path(__file__).resolve().parents[2]
NAME = f"autoip-{autoip.__version__}"

LEFT_OUT = {".gitignore", "autoip/dhcp/hookfiles"}
"""What a clone has and the source distribution has not: a link's files are in its place."""


def has(package: str, major: int) -> bool:
    try:
        return int(version(package).split(".")[0]) >= major
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not has("build", 1), reason="needs the package build"),
    pytest.mark.skipif(not has("setuptools", 61), reason="needs setuptools 61 or newer"),
    # One worker builds, the others need not.
    pytest.mark.xdist_group("packaging"),
]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built from a copy: a build writes into its source tree."""
    folder = tmp_path_factory.mktemp("packaging")
    ignore = shutil.ignore_patterns(
        ".git", ".venv", ".coverage*", ".*_cache", "*.so", "*.o", "*.egg-info", "build", "dist"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    built = subprocess.run(
        [*command, str(folder / "source")],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    # What setuptools is about to refuse.
    assert "DeprecationWarning" not in built.stdout
    return folder / "dist"


def test_source_distribution_holds_the_sources_and_no_results(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("autoip", "bench", "conformance", "csrc", "demo", "lab", "tests", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".h"} or (path.suffix == ".c" and path.name[0] != "_")
    }
    if (ROOT / ".git").exists():
        # Also where somebody else owns the clone.
        command = ["git", "-c", "safe.directory=*", "ls-files"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        expected |= {name for name in listed.stdout.split() if name not in LEFT_OUT}
    expected |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile"}
    expected |= {f"hooks/{path.name}" for path in (ROOT / "hooks").iterdir()}
    assert expected <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_holds_the_package_for_every_python(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    assert re.fullmatch(rf"{NAME}-cp310-abi3-linux_\w+\.whl", path.name)
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"{NAME}.dist-info"
        metadata = email.parser.Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "autoip").rglob("*.py*")}
    sources = {name for name in sources if not name.endswith(".pyc")}
    compiled = {"autoip/kernel/_native.abi3.so"}
    hooks = {f"autoip/dhcp/hookfiles/{path.name}" for path in (ROOT / "hooks").iterdir()}
    assert sources | compiled | hooks | {"autoip/py.typed"} == {
        name for name in names if name.startswith("autoip/")
    }
    assert {name.partition("/")[0] for name in names} == {"autoip", info}
    assert {f"{info}/licenses/LICENSE", f"{info}/LICENSE"} & names  # newer and older setuptools
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    assert "autoip = autoip.__main__:main" in scripts
    assert metadata["Version"] == autoip.__version__
    assert metadata["Requires-Python"] == ">=3.10"


@pytest.fixture(scope="module")
def released(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as `make release` leaves it, but for Debian's packages."""
    folder = tmp_path_factory.mktemp("release") / "dist"
    shutil.copytree(dist, folder)
    release.finish(folder)
    return folder


def test_checksums_are_of_all_that_is_published(released: Path) -> None:
    names = {path.name for path in released.iterdir()} - {release.SUMS}
    suffixes = sorted(name.removeprefix(NAME) for name in names)
    assert [re.sub("[0-9]+_[0-9]+_x86_64", "?", suffix) for suffix in suffixes] == [
        "-cp310-abi3-manylinux_?.whl",
        ".cdx.json",
        ".tar.gz",
    ]
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", release.SUMS],
        cwd=released,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0
    assert {line.split(":")[0] for line in checked.stdout.splitlines()} == names


def test_bill_of_materials(released: Path) -> None:
    text = (released / f"{NAME}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/autoip@{autoip.__version__}"
    scopes = {item["name"]: item.get("scope", "required") for item in bill["components"]}
    assert scopes == {
        "cffi": "required",
        "jeepney": "optional",
        "pycparser": "required",
        "pyroute2": "required",
    }
    for item in bill["components"]:
        assert item["purl"] == f"pkg:pypi/{item['name']}@{version(item['name'])}"
        assert item["licenses"]
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    needs = [(item["ref"], item["dependsOn"]) for item in bill["dependencies"] if len(item) > 1]
    assert needs == [("autoip", ["cffi", "jeepney", "pyroute2"]), ("cffi", ["pycparser"])]


def pythons() -> list[str]:
    """Every CPython of this machine that the wheel is for, by version."""
    found = {}
    places = [Path(sys.executable), Path("/usr/bin/python3")]
    places += Path.home().glob(".pyenv/versions/*/bin/python3")
    for place in places:
        code = "import pip, sys; print(*sys.version_info[:2])"
        asked = subprocess.run([place, "-c", code], capture_output=True, text=True)
        if asked.returncode == 0 and (version := tuple(map(int, asked.stdout.split()))) >= (3, 10):
            found[version] = str(place)
    return [found[version] for version in sorted(found)]


@pytest.mark.parametrize("python", pythons())
def test_every_python_takes_the_wheel(released: Path, tmp_path: Path, python: str) -> None:
    """From the file alone; the extension has all that it needs of that Python."""
    (wheel,) = released.glob("*.whl")
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
    install = [python, "-m", "pip", "install", *options, "--target", str(tmp_path), str(wheel)]
    installed = subprocess.run(install, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    code = "import ctypes, os, sys; ctypes.PyDLL(sys.argv[1], os.RTLD_NOW)"
    extension = str(tmp_path / "autoip/kernel/_native.abi3.so")
    loaded = subprocess.run([python, "-c", code, extension], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    version = "from autoip.__main__ import main; sys.argv = ['autoip', 'version']; main()"
    run = [python, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {version}"]
    assert (
        f"autoip {autoip.__version__}" in subprocess.run(run, capture_output=True, text=True).stdout
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A tree that may be released as 7.8.9."""
    (tmp_path / "debian").mkdir()
    (tmp_path / "CHANGELOG.md").write_text("## [7.8.9] - 2030-01-31\n\n## [7.8.8] - 2030-01-01\n")
    (tmp_path / "debian" / "changelog").write_text("autoip (7.8.9-1) unstable; urgency=medium\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    commit(tmp_path)
    return tmp_path


def git(clone: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=clone, check=True)


def commit(clone: Path) -> None:
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b.invalid", "commit", "-aqm", "a")


def test_a_release_of_what_is_committed_and_noted(clone: Path) -> None:
    assert release.refusals(clone, "7.8.9") == []
    (clone / "new").touch()
    assert release.refusals(clone, "7.8.9") == ["not committed: new"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("CHANGELOG.md", "[7.8.9] - 2030-01-31", "[Unreleased]"),
        ("CHANGELOG.md", "2030-01-31", "January"),
        ("debian/changelog", "unstable", "UNRELEASED"),
        ("debian/changelog", "7.8.9", "7.8.8"),
    ],
)
def test_no_release_of_what_is_not_noted(clone: Path, name: str, old: str, new: str) -> None:
    text = (clone / name).read_text()
    (clone / name).write_text(text.replace(old, new))
    commit(clone)
    (why,) = release.refusals(clone, "7.8.9")
    assert why.startswith(name)


def test_the_change_log_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(autoip.__version__)})\]", text, re.MULTILINE)


def test_debian_has_the_versions_of_the_change_log() -> None:
    """The same versions with the same dates, newest first; what is not released is UNRELEASED."""
    ours = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([0-9.]+)\] - (\S+)$", ours, re.MULTILINE)
    debian = (ROOT / "debian" / "changelog").read_text(encoding="utf-8")
    heads = re.findall(r"^autoip \((\S+)-[0-9]+\) (\S+); ", debian, re.MULTILINE)
    dates = [
        str(email.utils.parsedate_to_datetime(date).date())
        for date in re.findall(r"^ -- .*>  (.*)$", debian, re.MULTILINE)
    ]
    assert heads[0][0] == autoip.__version__
    entries = list(zip(heads, dates, strict=True))
    assert [
        (version, date) for (version, suite), date in entries if suite != "UNRELEASED"
    ] == released
    unreleased = [version for (version, suite), _ in entries if suite == "UNRELEASED"]
    assert unreleased == [
        version for version in [autoip.__version__] if version not in dict(released)
    ]


def test_the_version_stands_in_one_place() -> None:
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Dockerfile", ROOT / "Makefile"]
    files += sorted((ROOT / "autoip").rglob("*.py"))
    quoted = f'"{autoip.__version__}"'
    assert [path.name for path in files if quoted in path.read_text()] == ["__init__.py"]
