"""`autoip doctor`: facts are gathered, then judged by a table of checks."""
