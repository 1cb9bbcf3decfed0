"""The command `scan`: which hosts are on the cable, with which addresses, and what they are. Needs no daemon."""
