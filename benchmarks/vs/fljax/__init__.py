"""The runner of fljax."""
