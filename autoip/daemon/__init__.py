"""One process, its interfaces, and what they own."""
