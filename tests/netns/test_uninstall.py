"""`make uninstall` on a machine where a service of ours is enabled."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import Namespace, machine
from lab.daemon import REPOSITORY
from tests.require import requires_kernel_feature, requires_program, requires_root

pytestmark = [
    requires_root,
    requires_kernel_feature("namespaces"),
    requires_program("make", "make"),
]


@pytest.mark.parametrize("kind", ["wants", "requires"])
def test_an_enabled_service_is_named_and_nothing_removed(tmp_path: Path, kind: str) -> None:
    make = ["make", "-s", "-C", str(REPOSITORY), f"PREFIX={tmp_path}"]
    folder = f"/etc/systemd/system/multi-user.target.{kind}"
    with Namespace() as host:
        machine.give_own_files(host)
        host.run(*make, "install-data")
        installed = sorted(tmp_path.rglob("*"))
        host.run("mkdir", "-p", folder)
        unit = tmp_path / "lib/systemd/system/autoip@.service"
        host.run("ln", "-s", str(unit), f"{folder}/autoip@eth7.service")
        said = host.run("sh", "-c", '! "$@" 2>&1', "sh", *make, "uninstall")
        assert said.splitlines()[0] == (
            "autoip: enabled or running: autoip@eth7.service;"
            " first: systemctl disable --now autoip@eth7.service"
        )
        assert sorted(tmp_path.rglob("*")) == installed
        # With another prefix it is not our program that the service would lose.
        host.run(*make[:-1], f"PREFIX={tmp_path}/other", "uninstall")

        host.run("rm", f"{folder}/autoip@eth7.service")
        host.run(*make, "uninstall")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
