"""What would happen on each interface if DHCP failed now: the second table of `autoip hooks list`."""

from __future__ import annotations

import socket

from autoip import config
from autoip.control.client import ask, served
from autoip.dhcp import install, running
from autoip.dhcp.clients import CLIENTS
from autoip.errors import AutoipError
from autoip.paths import runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterator, Mapping

    from autoip.dhcp.image import Image


def rows(image: Image, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each interface of this network namespace, and what happens on it."""
    clients = running.dhcp_clients()
    configuration = config.load()
    patterned = _patterned(configuration)
    directory = runtime_directory(environ)
    here = served(directory)
    for name in sorted(name for _, name in socket.if_nameindex() if name != "lo"):
        if name in here and (text := _served(directory, name)):
            yield name, text
        else:
            units = [running.unit(name), *([running.SERVICE] if name in patterned else ())]
            enabled = [unit for unit in units if install.is_enabled(image, unit)]
            yield name, _not_served(image, name, clients.get(name), configuration, enabled)


def _patterned(configuration: config.Config) -> set[str]:
    """Return the interfaces that the one service for all interfaces serves where it runs."""
    if not configuration.served:
        return set()
    # These take longer than all the rest of the command.
    import asyncio

    from autoip.commands.dry_run import all_links
    from autoip.daemon.served import Selection

    wanted = Selection(configuration.served)
    return {link.name for link in asyncio.run(all_links()) if wanted.wants(link)}


def _served(directory: str, name: str) -> str:
    """Return what the daemon that serves the interface does; empty if there is none."""
    try:
        policy = ask(directory, name, "status")["status"]["policy"]
    except AutoipError:
        return ""
    return {
        "alongside": "nothing changes: autoip serves it, with or without DHCP",
        "fallback": "autoip, which serves it already, claims an address",
    }.get(policy, f"nothing: autoip serves it with the policy {policy}")


def _not_served(
    image: Image, name: str, client: str | None, configuration: config.Config, enabled: list[str]
) -> str:
    if client is None:
        return "nothing: no DHCP client serves it"
    if not configuration.hooks(name):
        return "nothing: the configuration says hooks = no, or does not name it"
    if client == "networkmanager":
        if enabled:
            return f"nothing: {enabled[0]} is enabled and does not serve it: systemctl restart {enabled[0]}"
        return f"nothing: NetworkManager reports no failure of DHCP: autoip hooks install {name}"
    if (state := install.state(image, client)) != "installed":
        return f"nothing: hooks of {client}: {state}: autoip hooks install --client {client}"
    if missing := install.missing_word(image, CLIENTS[client]):
        return f"nothing: {missing}"
    return f"the hook of {client} has autoip claim an address"
