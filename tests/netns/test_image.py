"""What the Dockerfile says, without a container: its capabilities are enough, and its healthcheck is right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from lab import Namespace, Port, machine
from lab.daemon import REPOSITORY

from .helpers import NETNS, wait_until

pytestmark = NETNS

TEXT = (REPOSITORY / "Dockerfile").read_text()
RUN = TEXT.partition("docker run")[2].partition("\n#\n")[0]


def words(instruction: str) -> list[str]:
    """The words of an instruction in its JSON form, for this Python and without the image's folder."""
    found = re.search(rf"^{instruction}.*?(\[.*\])$", TEXT, re.MULTILINE)
    assert found is not None
    first, *others = json.loads(found[1])
    assert first == "python"
    return [sys.executable, *others]


def contained() -> list[str]:
    """How a container's first process begins: root with the capabilities that the Dockerfile names, BPF among them."""
    names = [name.lower() for name in re.findall(r"--cap-add (\w+)", TEXT)]
    assert "--cap-drop ALL" in RUN and {"net_raw", "net_admin", "bpf"} < set(names)
    bounding = ",".join(["-all", *(f"+{name}" for name in names)])
    assert "no-new-privileges" in RUN
    return ["setpriv", "--bounding-set", bounding, "--inh-caps", "-all", "--no-new-privs", "--"]


def healthy(host: Namespace) -> int:
    """The exit status of the healthcheck, with the rights of the container."""
    check = [*contained(), *words("HEALTHCHECK")]
    done = host.popen(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    return done.wait(20)


def test_a_container_in_all_but_name(port: Port) -> None:
    machine.give_own_files(port.host)
    machine.write(port.host, "/etc/autoip.conf", "[*]\ndelay = 100\n")
    port.carrier(False)
    command = [*contained(), *words("ENTRYPOINT"), "eth0"]
    daemon = port.host.popen(command, stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    wait_until(lambda: healthy(port.host) == 1, "unhealthy without an address")
    port.carrier(True)
    wait_until(lambda: healthy(port.host) == 0, "healthy with an address")
    assert len(port.host.link_local("eth0")) == 1
    assert Path(f"/proc/{daemon.pid}").stat().st_uid != 0
    status = [*words("ENTRYPOINT"), "status", "--json", "eth0"]
    [report] = json.loads(port.host.run("env", "-C", str(REPOSITORY), *status))["interfaces"]
    assert report["limits"] == []
    daemon.terminate()  # STOPSIGNAL
    assert daemon.wait(20) == 0
    assert port.host.link_local("eth0") == []
    assert healthy(port.host) == 3
    assert "\nSTOPSIGNAL SIGTERM\n" in TEXT
