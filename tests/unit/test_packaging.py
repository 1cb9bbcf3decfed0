"""The source distribution builds, and from it the wheel; both hold what they should."""

from __future__ import annotations

import email.parser
import email.utils
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import autoip

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
        ".git", ".venv", ".*_cache", "*.so", "*.o", "*.egg-info", "build", "dist"
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
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
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
