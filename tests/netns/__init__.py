"""Tests with the real kernel: network namespaces, veth pairs, real programs. They need root."""
