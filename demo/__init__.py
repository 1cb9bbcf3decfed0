"""What `make run` shows without an interface."""
