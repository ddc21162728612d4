"""Keyed encoding and secure sums: words modulo 2^k, pads that cancel, and what the server sees of them."""
