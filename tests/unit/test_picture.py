"""The picture in the README is what its capture holds, and the capture is a claim and a defence."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lab import gaps
from tools import picture


def test_the_picture_is_not_stale() -> None:
    """If it is: python -m tools.picture."""
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw(picture.load())


def test_it_is_well_formed_and_the_readme_shows_it() -> None:
    root = ET.fromstring(picture.PICTURE.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    name = picture.PICTURE.relative_to(picture.ROOT)
    assert f"({name})" in (picture.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_capture() -> None:
    captured = picture.load()
    *claim, conflict, defence = captured
    assert [frame.is_probe for frame in claim] == [True] * 3 + [False] * 2
    assert [frame.is_announcement for frame in claim] == [False] * 3 + [True] * 2
    assert (conflict.sha, conflict.spa) == (picture.OTHER, picture.ADDRESS)
    assert defence.is_announcement
    assert {frame.sha for frame in [*claim, defence]} == {picture.HOST}
    assert all(1 <= gap <= 2 for gap in gaps(claim)[:2])
