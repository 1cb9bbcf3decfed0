"""The command `doctor`: what is in the way of link-local addresses here, and what cures it. Needs no daemon."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase

from autoip.commands import arguments
from autoip.control.client import served
from autoip.control.protocol import VERSION
from autoip.errors import UsageError
from autoip.option_table import Option, interface_name, is_pattern
from autoip.paths import runtime_directory

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Mapping, Sequence

    from autoip.commands.diagnosis.checks import Finding
    from autoip.commands.diagnosis.facts import Facts
    from autoip.kernel.model import Link

_EXIT_FAILURE = 1

OPTIONS = (
    arguments.json_option("one JSON object", "pretty"),
    Option(
        "interfaces", "IFACE", "name, or pattern of those that are there; default: all like Ethernet, and those served",
        read=interface_name, repeat="all", operand="*", offers="interfaces",
    ),
)  # fmt: skip


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print what was found; 0, or 1 if a failure was.

    Raises:
        UsageError: there is no interface of such a name.
        KernelRefused: the kernel does not answer.
    """
    found = arguments.values(OPTIONS, arguments.texts("doctor", OPTIONS, words))
    # Not before: `--help` and a mistyped option need none of it.
    from autoip.commands.diagnosis.checks import Result, findings

    facts, links = asyncio.run(_gathered(found["interfaces"], environ))
    result = findings(facts, links)
    if style := found["json"]:
        arguments.write(arguments.dumped(_report(result, facts.unread), style))
    else:
        arguments.write("\n".join(_lines(result, facts.unread)))
    failed = any(finding.result is Result.FAILURE for finding in result)
    return _EXIT_FAILURE if failed else 0


async def _gathered(words: Sequence[str], environ: Mapping[str, str]) -> tuple[Facts, list[Link]]:
    from autoip.commands.diagnosis import gather

    until = asyncio.get_running_loop().time() + gather.LIMIT
    kernel = await gather.kernel(until)
    links = _chosen(kernel.links, words, served(runtime_directory(environ)))
    return await gather.facts(kernel, links, environ, until), links


def _chosen(links: Sequence[Link], words: Sequence[str], served: Sequence[str]) -> list[Link]:
    """Return the interfaces that are meant, each once: by name, alternative name or pattern.

    Without a word: those that are like Ethernet, and those that are `served`, as the veth of a container.

    Raises:
        UsageError: a word means none of those that are there.
    """
    from autoip.kernel.model import ethernet_like

    if not words:
        like = ethernet_like(links)
        return [link for link in links if link in like or link.name in served]
    found: dict[int, Link] = {}
    for word in words:
        meant = [
            link
            for link in links
            if word in (link.name, *link.altnames)
            or (is_pattern(word) and fnmatchcase(link.name, word))
        ]
        if not meant:
            from autoip.commands.mistyped import nearest

            names = [link.name for link in links]
            near = nearest(word, names)
            allowed = f"the nearest is: {near}" if near else f"interfaces are {', '.join(names)}"
            raise UsageError(f"{word!r}: there is no such interface; {allowed}")
        found |= {link.index: link for link in meant}
    return list(found.values())


def _report(findings: Iterable[Finding], unread: Sequence[str]) -> dict[str, object]:
    """Return what `--json` shows: see `protocol.DOCTOR`."""
    return {
        "version": VERSION,
        "findings": [
            {
                "check": finding.check,
                "interface": finding.interface,
                "result": finding.result.value,
                "what": finding.what,
                "cure": finding.cure or None,
            }
            for finding in findings
        ],
        "unread": list(unread),
    }


def _lines(findings: Iterable[Finding], unread: Iterable[str]) -> list[str]:
    """Return aligned columns, each line followed by one with the cure, and what could not be read."""
    found = list(findings)
    rows = [("RESULT", "INTERFACE", "CHECK", "WHAT")]
    rows += [(one.result.value, one.interface or "-", one.check, one.what) for one in found]
    header, *lines = arguments.aligned(rows)
    shown = [header]
    for line, finding in zip(lines, found, strict=True):
        shown.append(line)
        if finding.cure:
            shown.append(f"         cure: {finding.cure}")
    shown += [f"not read: {line}" for line in unread]
    # Names of interfaces, profiles and files are other people's: none may command the terminal.
    return ["".join(char if char.isprintable() else "?" for char in line) for line in shown]
