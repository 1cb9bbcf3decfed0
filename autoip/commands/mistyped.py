"""The nearest right command line, where the first word is neither a command nor an interface.

`run` is the default command, so without this check a mistyped command would be an interface to wait for.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from operator import itemgetter

from autoip.commands.arguments import COMMANDS
from autoip.errors import UsageError
from autoip.kernel import interface_names
from autoip.option_table import interface_name, is_pattern

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import
    from collections.abc import Iterable, Sequence

    from autoip.option_table import Option

_MEANT = {
    "run": ("add", "begin", "claim", "enable", "on", "serve", "start", "up"),
    "stop": ("delete", "disable", "down", "end", "kill", "off", "release", "remove"),
    "status": ("get", "info", "list", "ls", "show", "stat"),
    "watch": ("events", "follow", "log", "monitor"),
    "refresh": ("again", "renew", "restart"),
    "doctor": ("diagnose", "diagnostics", "why"),
    "probe": ("arping", "check", "ping", "test"),
}
"""By command: the words of other programs for the same action."""
_NEAR = 0.6
"""The least SequenceMatcher.ratio() of two words that are near; 1 for equal words."""
_OTHER_WORDS = {word: command for command, words in _MEANT.items() for word in words}


def check(words: Sequence[str], options: Iterable[Option]) -> None:
    """Check that the interfaces exist that a command line without a command names.

    Args:
        words: the command line.
        options: the rows of `run`.

    Raises:
        UsageError: one does not exist; the message names the nearest command line that is right.
    """
    places = _operands(words, options)
    for place in places:
        word = words[place]
        if interface_names.exists(word):
            continue
        if place == places[0] or word not in COMMANDS:
            interface_name(word)
            if is_pattern(word):
                raise UsageError(
                    f"{word!r}: neither a command nor an interface; run takes no patterns"
                )
        raise UsageError(_refused(word, words, places))


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word nearest to a mistyped one, the first of several; None: none is near."""
    found = [(SequenceMatcher(None, word, other).ratio(), other) for other in allowed]
    score, other = max(found, key=itemgetter(0), default=(0.0, ""))
    return other if score >= _NEAR else None


def _refused(word: str, words: Sequence[str], places: Sequence[int]) -> str:
    """Return the message for a wrong word, with the nearest command line that is right."""
    rest = [words[place] for place in places if words[place] != word]
    if word in COMMANDS:
        return f"{word!r}: a command comes first: autoip {' '.join([word, *rest])}"
    what = f"{word!r}: neither a command nor an interface here"
    behind = next((other for other in rest if other in COMMANDS), None)
    if behind is not None:
        others = [words[place] for place in places if words[place] != behind]
        return f"{what}; a command comes first: autoip {' '.join([behind, *others])}"
    present = interface_names.names()
    command = _OTHER_WORDS.get(word.lower()) or nearest(word.lower(), COMMANDS)
    meant = nearest(word, [name for name in present if name not in words])
    wait = f"'autoip run {word}' waits for an interface of that name"
    if command is not None and (meant is None or word.isalpha()):
        return f"{what}; the nearest is: autoip {' '.join([command, *rest])}"
    if meant is not None:
        return f"{what}; the nearest is: autoip {' '.join(_replaced(words, word, meant))}; {wait}"
    return f"{what}; interfaces are {', '.join(present)}, commands: autoip help; {wait}"


def _replaced(words: Sequence[str], old: str, new: str) -> list[str]:
    return [new if word == old else word for word in words]


def _operands(words: Sequence[str], options: Iterable[Option]) -> list[int]:
    """Return the places of the words that are neither options nor values of options."""
    with_value = {flag for row in options if row.metavar and not row.operand for flag in row.flags}
    places = []
    value = False
    for place, word in enumerate(words):
        if value:
            value = False
        elif word.startswith("-") and word != "-":
            value = word in with_value
        else:
            places.append(place)
    return places
