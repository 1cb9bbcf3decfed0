"""The parts of the completions that the tables of options give: for bash, zsh and fish.

Each function takes the tables by command. The text around these parts is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from autoip.commands.arguments import COMMANDS
from autoip.option_table import Option

Tables = Mapping[str, tuple[Option, ...]]


def words(options: Iterable[Option]) -> list[str]:
    """Return the words of `-o`, those with a value with their equals sign."""
    return [
        f"{option.word}=" if option.metavar else option.word for option in options if option.word
    ]


def in_short(text: str) -> str:
    """Return the first clause, without backticks."""
    return text.partition(";")[0].replace("`", "").rstrip(".")


def of_command(command: str) -> str:
    """Return the meaning of a command in a few words."""
    text = re.split("[:;(]", COMMANDS[command])[0].rstrip(" .")
    return f"{text[0].lower()}{text[1:]}"


def named(options: Iterable[Option]) -> list[Option]:
    """Return the options without the operands."""
    return [option for option in options if not option.operand]


# --- bash ----------------------------------------------------------------------------------------


def bash_commands(tables: Tables) -> str:
    """Return all commands, and a branch for those that are not the default."""
    others = [command for command in tables if command != "run"]
    return "\n".join(
        [
            f'    commands="{" ".join(tables)}" module_words="{" ".join(words(tables["run"]))}"',
            "    case ${before[1]} in",
            f"    {' | '.join(others)}) command=${{before[1]}} ;;",
            "    esac",
        ]
    )


def bash_values(tables: Tables) -> str:
    """Return the offers after an option that takes a value, and after a command whose operand has values."""
    places: dict[str, list[str]] = {}
    for command, options in tables.items():
        for option in options:
            offered = " ".join(option.values) or option.offers or "nothing"
            if option.operand and option.values:
                places.setdefault(f"operand {offered}", []).append(f"{command}:{command}")
            elif option.metavar and not option.operand:
                # An optional value follows an equals sign.
                equals = "=" if option.alone else ""
                places.setdefault(offered, []).append(f"{command}:{option.flag}{equals}")
        if not any(option.operand and (option.values or option.offers) for option in options):
            places.setdefault("operand ", []).append(f"{command}:{command}")
    lines = [f'    {" | ".join(found)}) offered="{what}" ;;' for what, found in places.items()]
    return "\n".join(["    case $command:$previous in", *lines, "    esac"])


def bash_options(tables: Tables) -> str:
    """Return the options of each command."""
    lines = [
        f'    {command}) options+=" {" ".join(flag for option in found for flag in option.flags)}" ;;'
        for command, options in tables.items()
        if (found := named(options))
    ]
    return "\n".join(["    case $command in", *lines, "    esac"])


# --- zsh -----------------------------------------------------------------------------------------


def _zsh(text: str) -> str:
    """Quote a string."""
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_value(option: Option) -> str:
    """Return the name of an option's value, or of an operand, and what zsh offers for it."""
    if not option.metavar:
        return ""
    offered = {
        "files": "_files",
        "folders": "_files -/",
        "interfaces": "_autoip_interfaces",
        "words": "_autoip_words",
    }
    action = f"({' '.join(option.values)})" if option.values else offered.get(option.offers, "")
    return f":{option.metavar}:{action}"


def _zsh_meaning(option: Option) -> str:
    meaning = re.sub(r"([\[\]:])", r"\\\1", in_short(option.help))
    return f"[{meaning}]{_zsh_value(option)}"


def _zsh_spec(option: Option) -> str:
    """Return one argument of `_arguments`."""
    many = "*" if option.repeat == "all" else ""
    if option.operand:
        return _zsh(f"{many}{_zsh_value(option)}")
    alone = "(- *)" if option.name == "version" else ""
    if option.alone:
        return _zsh(f"{option.flag}=-{_zsh_meaning(option)}").replace("]:", "]::")
    return _zsh(f"{alone}{many}{option.flag}{_zsh_meaning(option)}")


def zsh_words(tables: Tables) -> str:
    """Return the words of `-o`, for `_values`."""
    lines = [
        f"        {_zsh(option.word + _zsh_meaning(option))}"
        for option in tables["run"]
        if option.word
    ]
    return "\n".join(["    module_words=(", *lines, "    )"])


def zsh_commands(tables: Tables) -> str:
    """Return the commands with their meanings, for `_describe`."""
    lines = [f"        {_zsh(f'{command}:{of_command(command)}')}" for command in tables]
    return "\n".join(["    commands=(", *lines, "    )"])


def zsh_names(tables: Tables) -> str:
    """Return the commands alone."""
    return f"    names=({' '.join(tables)})"


def zsh_arguments(tables: Tables) -> str:
    """Return the arguments of each command, for `_arguments`."""
    lines = ["    case $command in"]
    for command, options in tables.items():
        operands = [option for option in options if option.operand]
        specs = [_zsh_spec(option) for option in [*named(options), *operands]]
        specs += [
            _zsh(f"-{option.letter}[{in_short(option.help)}]")
            for option in options
            if option.letter
        ]
        lines.append(f"        ({command})")
        lines += ["            specs+=(", *(f"                {spec}" for spec in specs)]
        lines += ["            )", "            ;;"]
    return "\n".join([*lines, "    esac"])


# --- fish ----------------------------------------------------------------------------------------


def _fish(text: str) -> str:
    """Quote a string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_value(option: Option) -> str:
    """Return the switches of `complete` for the option's value."""
    if not option.metavar:
        return ""
    if option.alone:
        return f" -a {_fish(' '.join(option.values))}"
    if option.values:
        return f" -x -a {_fish(' '.join(option.values))}"
    return {
        "files": " -r -F",
        "folders": " -x -a '(__fish_complete_directories)'",
        "words": " -x -a '(__autoip_words)'",
    }.get(option.offers, " -x")


def fish_words(tables: Tables) -> str:
    """Return the words of `-o`."""
    line = " ".join(words(tables["run"])).replace("if=", "if=(__autoip_interfaces)")
    return f"    set -l words {line}"


def fish_options(tables: Tables) -> str:
    """Return a line for each command and each option."""
    others = " ".join(command for command in tables if command != "run")
    lines = []
    for command in tables:
        meaning = _fish(of_command(command))
        lines.append(f"complete -c autoip -n __fish_is_first_arg -a {command} -d {meaning}")
    for command, options in tables.items():
        where = f"not __fish_seen_subcommand_from {others}"
        if command != "run":
            where = f"__fish_seen_subcommand_from {command}"
        if named(options):
            lines += ["", f"set -l where {_fish(where)}"]
        for option in options:
            if option.operand:
                if option.values:
                    values = _fish(" ".join(option.values))
                    lines.append(f"complete -c autoip -n __autoip_{command}_first -a {values}")
                continue
            name = f"-s {option.name}" if len(option.name) == 1 else f"-l {option.name}"
            name = f"-s {option.letter} {name}" if option.letter else name
            meaning = _fish(in_short(option.help))
            lines.append(f"complete -c autoip -n $where {name}{_fish_value(option)} -d {meaning}")
    return "\n".join(lines)


PARTS: Mapping[str, Mapping[str, Callable[[Tables], str]]] = {
    "autoip.bash": {"COMMANDS": bash_commands, "VALUES": bash_values, "OPTIONS": bash_options},
    "_autoip": {
        "WORDS": zsh_words,
        "COMMANDS": zsh_commands,
        "NAMES": zsh_names,
        "ARGUMENTS": zsh_arguments,
    },
    "autoip.fish": {"WORDS": fish_words, "OPTIONS": fish_options},
}
"""By shell: the parts of its file, in order."""
