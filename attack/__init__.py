"""Attacks on autoip, each for as long as one likes: `python -m attack`, `make attack`."""
