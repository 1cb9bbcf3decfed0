"""The rules of RFC 3927 and RFC 5227: no clock, no input or output."""
