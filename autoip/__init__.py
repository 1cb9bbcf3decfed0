"""Automatic IPv4 link-local addresses on Linux: RFC 3927 with the conflict detection of RFC 5227."""

__version__ = "0.1.0"
