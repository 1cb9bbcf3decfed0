"""The parts of the documents that the code itself tells.

    python -m tools.documents

writes them anew: the tables of JSON fields in the manual, the state diagram in docs/design.md. They stand between lines
with `begin NAME` and `end NAME`. A test says when one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from autoip.control import protocol
from autoip.control.protocol import Field
from autoip.core import acd, ipv4ll
from autoip.core.ipv4ll import State

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "share" / "autoip.8"
DESIGN = ROOT / "docs" / "design.md"


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


def diagram() -> str:
    """The states of an interface, for Mermaid: the steps of acd in a box, what ipv4ll does around it."""
    inside = {state for step in ipv4ll.ACD_STEPS for state in step}
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR"]
    named = {state: f'state "{state.value}" as {state.name}' for state in State}
    lines += [f"    {named[state]}" for state in State if state not in inside]
    lines += [f"    [*] --> {State.NO_LINK.name}", '    state "a candidate: RFC 5227" as ACD {']
    lines += [f"        {named[state]}" for state in State if state in inside]
    lines += [f"        [*] --> {State.PROBING.name}"]
    for (old, trigger), new in acd.TRANSITIONS.items():
        if trigger is acd.Trigger.REMOVED:
            continue  # `Cause.REMOVED` below tells of it
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
        "STATUS": lambda: fields(protocol.STATUS),
        "STATES": lambda: words(protocol.STATES),
        "EVENT": lambda: fields(protocol.EVENT),
        "PROBE": lambda: fields(protocol.PROBE),
        "EVENTS": lambda: words(protocol.EVENTS),
    },
    DESIGN: {"STATES": diagram},
}


def renewed(path: Path) -> str:
    """The file's text with all its parts as the code has them now."""
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
