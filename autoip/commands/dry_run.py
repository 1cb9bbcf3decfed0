"""The table of `autoip run --dry-run`: the options in force, and the origin of each."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from autoip.commands.arguments import aligned, write
from autoip.commands.run import (
    SHARED,
    Arguments,
    by_hook,
    check_policy,
    configured,
    options_of,
    selection,
)
from autoip.config import Config
from autoip.kernel.model import Link
from autoip.kernel.network import Network
from autoip.option_table import Option
from autoip.options import CONFIGURED, Options

if TYPE_CHECKING:
    from autoip.daemon.handover import Handover


def show(arguments: Arguments, environ: MutableMapping[str, str]) -> None:
    """Write the table; and, tried out for a reload, that all which `run` starts with can be read.

    Raises:
        UsageError: what `run` would refuse.
        KernelRefused: the kernel does not list the interfaces.
    """
    from autoip.daemon import executable

    handed = executable.inherited(environ)
    write("\n".join(table(arguments, configured(arguments), handed)))
    if handed is not None:
        write(executable.READABLE)


def table(
    arguments: Arguments, configuration: Config, handed: Handover | None = None
) -> Iterable[str]:
    """Return the lines: for each interface its options, then the options for all interfaces together.

    Raises:
        UsageError: `run` would refuse the command line.
        KernelRefused: the kernel does not list the interfaces.
    """
    from autoip.daemon.daemon import names_of

    links = asyncio.run(all_links())
    wanted = selection(arguments, configuration)
    if wanted is None:
        names = names_of(arguments.interfaces, links, handed)
    else:
        names = [link.name for link in links if wanted.wants(link)]
    check_policy(names, arguments, configuration)
    rows: list[Sequence[str]] = [("INTERFACE", "OPTION", "VALUE", "FROM")]
    for name in names:
        options = options_of(name, arguments, configuration)
        rows += [
            (
                name,
                option.name,
                _text(option, options),
                _origin(option, name, arguments, configuration),
            )
            for option in CONFIGURED.values()
        ]
    for option in SHARED:
        if option.field in ("interfaces", "dry_run"):
            continue
        value = getattr(arguments, option.field)
        origin = "default" if value == option.combined([]) else "command line"
        rows.append(("all", option.name, _shown(option, value), origin))
    return aligned(rows)


def _origin(option: Option, name: str, arguments: Arguments, configuration: Config) -> str:
    if option.field in arguments.choices:
        return "command line"
    if option.field in (places := configuration.places(name)):
        return places[option.field]
    return "hook" if option.field in by_hook(arguments) else "default"


def _text(option: Option, options: Options) -> str:
    return _shown(option, getattr(options, option.field))


def _shown(option: Option, value: Any) -> str:
    """Return a value as it would be typed; `-` for none."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    if value is None:
        return "-"
    if not option.metavar:
        return "yes" if value == option.value("yes") else "no"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


async def all_links() -> list[Link]:
    """Return the links of this network namespace. Raises KernelRefused."""
    network = Network()
    await network.open()
    try:
        links, _ = await network.snapshot()
    finally:
        network.close()
    return links
