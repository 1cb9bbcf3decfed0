"""A host whose files are its own: a copy of /etc and an empty /var/lib, in its mount namespace alone."""

from __future__ import annotations

from pathlib import Path

from .namespace import Namespace

DHCPCD = "/usr/lib/dhcpcd"
"""dhcpcd's script, and the folder of the hooks that it reads."""

_FOREIGN_HOOKS = ("avahi-autoipd", "zzz_avahi-autoipd", "resolved", "timesyncd")
"""Hooks of packages that happen to be installed, which would act on their own."""


def give_own_files(namespace: Namespace) -> None:
    """Give the host its own /etc, /var/lib and folder of dhcpcd's hooks, which go with the namespace."""
    script = """
        set -e
        mkdir /run/lab-etc
        # Not below /run: what is shown in /etc must stay when a test fills or hides /run.
        mount -t tmpfs -o mode=755 autoip-lab /run/lab-etc
        cp -a /etc/. /run/lab-etc
        mount --bind /run/lab-etc /etc
        mount -t tmpfs -o mode=755 autoip-lab /var/lib
        mkdir /var/lib/dhcp
        umount /run/lab-etc
        rmdir /run/lab-etc
        if [ -d {dhcpcd} ]; then
            mkdir /run/lab-hooks
            mount -t tmpfs -o mode=755 autoip-lab /run/lab-hooks
            cp -a {dhcpcd}/. /run/lab-hooks
            mount --bind /run/lab-hooks {dhcpcd}
            umount /run/lab-hooks
            rmdir /run/lab-hooks
        fi
        find /etc/dhcp /etc/network -type f \\( {foreign} \\) -delete
    """
    foreign = " -o ".join(f"-name {name}" for name in _FOREIGN_HOOKS)
    script = script.replace("{foreign}", foreign).replace("{dhcpcd}", DHCPCD)
    namespace.run("sh", "-c", script)


def read(namespace: Namespace, path: str) -> str:
    """Return a file of the host's programs; empty if there is none."""
    return namespace.run("cat", path, check=False)


def write(namespace: Namespace, path: str, text: str, mode: int = 0o644) -> None:
    """Write a file there; make the folder if need be."""
    folder = str(Path(path).parent)
    script = 'mkdir -p "$1" && cat >"$2" && chmod "$3" "$2"'
    namespace.run("sh", "-c", script, "sh", folder, path, f"{mode:o}", stdin=text)
