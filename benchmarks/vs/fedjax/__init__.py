"""The runner of fedjax."""
