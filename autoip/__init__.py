"""Automatic IPv4 link-local addresses on Linux: RFC 3927, with conflict detection by RFC 5227."""

__version__ = "0.1.0"
