"""What the parsers are given: the corpus of a target, changes of it, and bytes that are nothing at all."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).resolve().parent / "corpus"
"""A folder for each target, a file for each input."""

EDGES = bytes([0, 1, 2, 4, 8, 0x0A, 0x20, 0x22, 0x2E, 0x3D, 0x5B, 0x7F, 0x80, 0xA9, 0xFE, 0xFF])
"""Bytes that mean something to one of the parsers."""


def seeds(target: str) -> list[bytes]:
    """The inputs of the corpus, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def changed(draw: st.DrawFn, known: list[bytes]) -> bytes:
    """An input of the corpus with some bytes changed, left out, put in, repeated, or cut off."""
    data = bytearray(draw(st.sampled_from(known)))
    for _ in range(draw(st.integers(0, 5))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        match draw(st.integers(0, 5)):
            case 0 if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 1 if place < len(data):
                data[place] = draw(st.sampled_from(EDGES))
            case 2:
                data[place:place] = draw(st.binary(max_size=8))
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length] * draw(
                    st.sampled_from([1, 2, 500])
                )
            case _:
                del data[place:]
    return bytes(data)


def like(target: str) -> st.SearchStrategy[bytes]:
    """Inputs for a target: mostly nearly good ones."""
    known = seeds(target)
    return st.one_of(
        st.sampled_from(known), changed(known), changed(known), st.binary(max_size=300)
    )
