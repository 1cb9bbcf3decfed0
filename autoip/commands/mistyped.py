"""What a person may have meant whose first word is neither a command nor an interface.

`run` is the default command, so without this a mistyped command would be an interface that is waited for.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from operator import itemgetter

from autoip import interfaces
from autoip.commands.arguments import COMMANDS
from autoip.errors import UsageError
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
"""Words that other programs have for what a command does."""
_NEAR = 0.6
"""Of SequenceMatcher.ratio(), which is 1 for equal words."""
_OTHER_WORDS = {word: command for command, words in _MEANT.items() for word in words}


def check(words: Sequence[str], options: Iterable[Option]) -> None:
    """Check the names of a command line that begins with no command: the interfaces have to exist.

    Args:
        words: the command line.
        options: the rows of `run`.

    Raises:
        UsageError: one of them does not; the message names the nearest command line that is right.
    """
    places = _operands(words, options)
    for place in places:
        word = words[place]
        if interfaces.exists(word):
            continue
        if place == places[0] or word not in COMMANDS:
            interface_name(word)
            if is_pattern(word):
                raise UsageError(
                    f"{word!r}: neither a command nor an interface; run takes no patterns"
                )
        raise UsageError(_refused(word, words, places))


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word that a mistyped one is nearest to, the first of several; None: it is near none."""
    found = [(SequenceMatcher(None, word, other).ratio(), other) for other in allowed]
    score, other = max(found, key=itemgetter(0), default=(0.0, ""))
    return other if score >= _NEAR else None


def _refused(word: str, words: Sequence[str], places: Sequence[int]) -> str:
    """Say what a word is not, and the nearest command line that is right."""
    rest = [words[place] for place in places if words[place] != word]
    if word in COMMANDS:
        return f"{word!r}: a command comes first: autoip {' '.join([word, *rest])}"
    what = f"{word!r}: neither a command nor an interface here"
    behind = next((other for other in rest if other in COMMANDS), None)
    if behind is not None:
        others = [words[place] for place in places if words[place] != behind]
        return f"{what}; a command comes first: autoip {' '.join([behind, *others])}"
    present = interfaces.names()
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
    """Return the places of the words that are no options and no values of options."""
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
