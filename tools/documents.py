"""The parts of the documents that come from the code.

    python -m tools.documents

writes them: options and the tables of JSON fields in the manual, the table of options in docs/usage.md, the states
in docs/design.md, the results of the attacks in docs/reliability.md and docs/scale.svg, the options in the completions.
They are between lines with `begin NAME` and `end NAME`. A test fails when one is stale.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from attack import page
from autoip import config, options
from autoip.commands import about, avahi_autoipd, doctor, hooks, probe, query
from autoip.commands.diagnosis.checks import CHECKS
from autoip.commands.scan import command as scan
from autoip.control import protocol
from autoip.control.protocol import Field
from autoip.core import acd, ipv4ll
from autoip.core.ipv4ll import State
from autoip.option_table import Option
from tools import completions

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
USAGE = ROOT / "docs" / "usage.md"
OPERATION = ROOT / "docs" / "operation.md"
MANUAL = ROOT / "share" / "autoip.8"
CONFIGURATION = ROOT / "share" / "autoip.conf.5"
HOOKS = ROOT / "share" / "autoip-hooks.8"
AVAHI = ROOT / "share" / "avahi-autoipd.8"
DESIGN = ROOT / "docs" / "design.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
SCALE = ROOT / "docs" / "scale.svg"
COMPLETIONS = ROOT / "share" / "completions"

TABLES: Mapping[str, tuple[Option, ...]] = {
    "run": options.RUN,
    **query.OPTIONS,
    "probe": probe.OPTIONS,
    "scan": scan.OPTIONS,
    "doctor": doctor.OPTIONS,
    "hooks": hooks.OPTIONS,
    **about.OPTIONS,
}
"""The options of each command."""


def fields(table: Mapping[str, Field]) -> str:
    """As a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for name, field in table.items():
        unit = f", {field.unit}" if field.unit else ""
        lines += [f".It Cm {name} Pq {field.type}{unit}", sentence(field.meaning)]
    return "\n".join([*lines, ".El"])


def words(table: Mapping[str, str]) -> str:
    """As a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for name, meaning in table.items():
        lines += [f".It Cm {name}", sentence(meaning)]
    return "\n".join([*lines, ".El"])


def sentence(meaning: str) -> str:
    return f"{meaning[0].upper()}{meaning[1:]}."


def mdoc(text: str) -> str:
    """Turn a text of the tables of options into mdoc(7): each sentence, and each word between backticks, on a line."""
    lines: list[str] = []
    for part in re.split(r"(?<=\.) |( ?\(?`[^`]+`[.,:;)]* ?)", text):
        if not part:
            continue
        if (found := re.fullmatch(r" ?(\(?)`(.+)`([.,:;)]*) ?", part)) is None:
            lines += textwrap.wrap(part, 79, break_on_hyphens=False)
        elif found[1]:
            lines.append(" ".join([f".Pq {macro(found[2])}", *found[3].removeprefix(")")]))
        else:
            lines.append(" ".join([f".{macro(found[2])}", *found[3]]))
    return "\n".join(lines)


def macro(word: str) -> str:
    """Return the macro of mdoc(7) for a word between backticks, without the leading dot."""
    if word.startswith("-"):
        return f"Fl {word[1:].replace(' ', ' Cm ')}"
    if word.startswith("/"):
        return f"Pa {word}"
    if word.startswith("["):
        return f"Sx {word[1:-1]}"
    if found := re.fullmatch(r"([\w.-]+)\((\d)\)", word):
        return f"Xr {found[1]} {found[2]}"
    if found := re.fullmatch(r"(\w+)=(\w+)", word):
        return f"Cm {found[1]} Ns = Ns Ar {found[2]}"
    return f"Ar {word}" if word.isupper() else f"Cm {word}"


def synopsis() -> str:
    """Return all commands with their options, for mdoc(7)."""
    lines = [synopsis_of(command) for command in TABLES]
    return "\n".join([*lines, ".Nm", ".Fl -version"])


def synopsis_of(command: str, name: str = ".Nm") -> str:
    """Return a command with its options, for mdoc(7); `name`: of the program, where the page has another one."""
    lines = [name, ".Op Cm run" if command == "run" else f".Cm {command}"]
    for row in TABLES[command]:
        if row.operand:
            operand = f"Ar {row.metavar}" + (" ..." if row.operand in "+*" else "")
            lines.append(f".Op {operand}" if row.operand in "?*" else f".{operand}")
        elif row.name != "version":
            lines.append(f".Op {flag(row)}")
    return "\n".join(lines)


def flag(row: Option) -> str:
    """Return an option and the placeholder of its value, for mdoc(7)."""
    if row.alone:
        return f"Fl {row.flag[1:]} Ns Op = Ns Ar {row.metavar}"
    return f"Fl {row.flag[1:]} Ar {row.metavar}" if row.metavar else f"Fl {row.flag[1:]}"


def descriptions(rows: Iterable[Option]) -> str:
    """Return the options of a command, as a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for row in rows:
        if not row.operand:
            short = f"Fl {row.letter} , " if row.letter else ""
            lines += [f".It {short}{flag(row)}", mdoc(f"{sentence(row.help)} {row.more}".rstrip())]
    return "\n".join([*lines, ".El"])


def configured() -> str:
    """Return the names of the configuration file with their meaning, as a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for row in [*options.CONFIGURED.values(), *config.OWN]:
        value = f"Ar {row.metavar}" if row.metavar else "Cm yes No or Cm no"
        meaning = mdoc(f"{sentence(row.help)} {row.more}".rstrip())
        there = re.sub(
            r"^\.Sx (.+?)( \.)?$", r".Sy \1\nin\n.Xr autoip 8\2", meaning, flags=re.MULTILINE
        )
        lines += [f".It Cm {row.name} No = {value}", there]
    return "\n".join([*lines, ".El"])


def table(rows: Iterable[Option]) -> str:
    """Return the options of `run`, for docs/usage.md."""
    lines = ["| option | the module's word | meaning |", "|---|---|---|"]
    for row in rows:
        name = f"{row.metavar} ..." if row.operand else f"{row.flag} {row.metavar}".rstrip()
        word = f" `{row.usage}`" if row.word else ""
        lines.append(f"| `{name}` |{word} | {row.help} |")
    return "\n".join([*lines, "| `--help` | | show a summary |"])


def checks() -> str:
    """The checks of `doctor` as a list of mdoc(7)."""
    lines = [".Bl -tag -width Ds"]
    for check in CHECKS:
        whose = "of an interface" if check.of_link is not None else "of the host"
        lines += [
            f".It Cm {check.name} Pq {whose}",
            mdoc(f"{sentence(check.finds)} Cure: {check.cure}."),
        ]
    return "\n".join([*lines, ".El"])


def cures() -> str:
    """The checks of `doctor`, for docs/operation.md."""
    lines = ["| check | finds | cure |", "|---|---|---|"]
    lines += [f"| `{check.name}` | {check.finds} | {check.cure} |" for check in CHECKS]
    return "\n".join(lines)


def diagram() -> str:
    """Return the states of an interface, for Mermaid: the steps of acd in a box, those of ipv4ll around it."""
    inside = {state for step in ipv4ll.ACD_STEPS for state in step}
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR"]
    named = {state: f'state "{state.value}" as {state.name}' for state in State}
    lines += [f"    {named[state]}" for state in State if state not in inside]
    lines += [f"    [*] --> {State.NO_LINK.name}", '    state "a candidate: RFC 5227" as ACD {']
    lines += [f"        {named[state]}" for state in State if state in inside]
    lines += [f"        [*] --> {State.PROBING.name}"]
    for (old, trigger), new in acd.TRANSITIONS.items():
        if trigger is acd.Trigger.REMOVED:
            continue  # `Cause.REMOVED` below has it
        source, target = (ipv4ll.ACD_STATES.get(kind) for kind in (old, new))
        names = [state.name if state else "[*]" for state in (source, target)]
        lines.append(f"        {names[0]} --> {names[1]}: {trigger.value}")
    lines.append("    }")
    for cause, (sources, targets) in ipv4ll.TRANSITIONS.items():
        whole = {"ACD"} if sources >= inside else {state.name for state in sources & inside}
        for source_name in sorted(whole | {state.name for state in sources - inside}):
            for name in sorted("ACD" if s is State.PROBING else s.name for s in targets):
                lines.append(f"    {source_name} --> {name}: {cause.value}")
    return "\n".join([*lines, "```"])


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    MANUAL: {
        "SYNOPSIS": synopsis,
        **{
            f"OPTIONS OF {command}": partial(descriptions, rows)
            for command, rows in TABLES.items()
            if completions.named(rows) and command != "hooks"
        },
        "STATUS": lambda: fields(protocol.STATUS),
        "STATES": lambda: words(protocol.STATES),
        "EVENT": lambda: fields(protocol.EVENT),
        "PROBE": lambda: fields(protocol.PROBE),
        "SCAN": lambda: fields(protocol.SCAN),
        "EVENTS": lambda: words(protocol.EVENTS),
        "CHECKS": checks,
        "DOCTOR": lambda: fields(protocol.DOCTOR),
        "FINDING": lambda: fields(protocol.FINDING),
    },
    CONFIGURATION: {"NAMES": configured},
    HOOKS: {
        "SYNOPSIS OF hooks": partial(synopsis_of, "hooks", ".Nm autoip"),
        "OPTIONS OF hooks": partial(descriptions, hooks.OPTIONS),
    },
    AVAHI: {"OPTIONS": partial(descriptions, avahi_autoipd.OPTIONS)},
    OPERATION: {"CHECKS": cures},
    DESIGN: {"STATES": diagram},
    RELIABILITY: {"TRIED": page.tried, "PARTY": page.party, "SCALE": page.scale},
    SCALE: {"CURVES": page.picture},
    USAGE: {"OPTIONS": lambda: table(options.RUN)},
    **{
        COMPLETIONS / name: {part: partial(make, TABLES) for part, make in parts.items()}
        for name, parts in completions.PARTS.items()
    },
}


def renewed(path: Path) -> str:
    """Return the file's text with all its parts as the code has them now."""
    text = path.read_text(encoding="utf-8")
    for name, make in PARTS[path].items():
        pattern = rf"(^[^\n]*\bbegin {name}\b[^\n]*\n)(.*?)(^[^\n]*\bend {name}\b)"
        new = make().replace("\\", "\\\\")
        text, count = re.subn(pattern, rf"\g<1>{new}\n\g<3>", text, flags=re.DOTALL | re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path.name}: {name} stands there {count} times")
    return text


if __name__ == "__main__":
    for document in PARTS:
        document.write_text(renewed(document), encoding="utf-8")
