"""What a scan asks and hears, one file for each protocol: a question as bytes, an answer as a value.

Each module has `PORT`, `GROUP` and `TTL`, where its question goes; `question()`, or `reverse`, which asks for the names
of addresses; and `answer(payload)`, which returns what a datagram says of its sender, or None if it says nothing.
Whatever the bytes are, neither raises. `icmpv6` alone is not UDP.
"""

from __future__ import annotations

from collections import namedtuple

EVERYBODY = 0xFFFFFFFF

Answer = namedtuple("Answer", "names kinds address mac mask", defaults=((), (), None, None, None))
"""What a host says of itself: names, kinds of device or service; address, mask (numbers) and MAC if it names them."""
