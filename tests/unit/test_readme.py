"""The commands of README.md are marked with what they are, and the tool that runs them reads them right."""

from __future__ import annotations

import pytest

from demo import ORDER, disorder
from tools import readme
from tools.readme import KINDS, README, Block, Visit, blocks, commands, table


def test_every_block_is_marked_with_a_known_kind() -> None:
    found = blocks(README.read_text())
    assert [block for block in found if block.kind not in KINDS] == []
    # A mark that no block follows is a mistake as well.
    assert len(found) == README.read_text().count("<!-- commands: ")
    assert {block.kind for block in found} == set(KINDS)


def test_the_first_commands_are_complete() -> None:
    words = commands("try")
    assert words[0].startswith("sudo apt-get install ")
    assert any(readme.URL in word for word in words)
    assert words[-1] == "make run"
    assert commands("install")[0] == "sudo make install"
    assert commands("uninstall")[-1] == "sudo make uninstall"
    assert commands("test") == ["make test"]


def test_blocks() -> None:
    text = """\
# Title

<!-- commands: try -->

    one    # a comment
    two \\
      more

    unmarked

text
    still a paragraph

<!-- commands: use -->

text between

    unmarked as well

<!-- commands: none -->
```sh
fenced

    inside
```
"""
    assert blocks(text) == [
        Block("try", 5, ("one    # a comment", "two   more")),
        Block(None, 9, ("unmarked",)),
        Block(None, 18, ("unmarked as well",)),
        Block("none", 21, ("fenced", "    inside")),
    ]


SHOWN = """\
== A private network: eth0
   $ autoip eth0
== A neighbour holds 169.254.20.20, which autoip tries first.
   | eth0: probing -> probing: conflict: 02:00:00:00:00:fe claims 169.254.20.20
   | eth0: claimed 169.254.1.1
   On the wire: three probes
   | eth0: announcing -> bound: 2 announcements sent
   Announced twice.
== The neighbour says once
   | eth0: conflict: 02:00:00:00:00:fe claims 169.254.1.1; defended
   Defended 33 microseconds later, and kept.
== Quiet for 10 s
== The neighbour says it twice
   | eth0: conflict: 02:00:00:00:00:fe claims 169.254.1.1; defended
   Defended 35 microseconds later.
   | eth0: bound -> probing: conflict: 02:00:00:00:00:fe claims 169.254.1.1
   | eth0: claimed 169.254.2.2
   Given up; 169.254.2.2
== SIGTERM.
   | eth0: announcing -> no-link: stopped
   Exit status 0; nothing is left.
== A camera with an address of another network is plugged in: which address has it?
   $ autoip scan eth0 --first
   | eth0     192.168.77.5    GigE Vision  in another subnet: ip address add 192.168.77.6/24 dev eth0
   Found within 0.2 s of the start.
== All of it happened in 16 s
""".splitlines()


def test_the_demonstration_in_order() -> None:
    assert len(SHOWN) == len(ORDER)
    assert disorder("\n".join(SHOWN)) is None


@pytest.mark.parametrize("number", range(len(SHOWN)))
def test_each_line_is_missed(number: int) -> None:
    assert disorder("\n".join(SHOWN[:number] + SHOWN[number + 1 :])) is not None


@pytest.mark.parametrize("number", range(len(SHOWN) - 1))
def test_two_lines_that_changed_places_are_noticed(number: int) -> None:
    lines = list(SHOWN)
    lines[number], lines[number + 1] = lines[number + 1], lines[number]
    assert disorder("\n".join(lines)) is not None


def test_table() -> None:
    visits = [
        Visit("bookworm", "root", {"a": "1.0 s", "b": "FAILED"}),
        Visit("trixie", "user", {"a": "2.0 s"}),
    ]
    assert table(visits).splitlines() == [
        "| command | bookworm, root | trixie, user |",
        "|---|---|---|",
        "| `a` | 1.0 s | 2.0 s |",
        "| `b` | FAILED |  |",
    ]
