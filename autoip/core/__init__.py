"""What RFC 3927 and RFC 5227 say: no clock, no input or output."""
