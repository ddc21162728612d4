"""The runner of pfl."""
