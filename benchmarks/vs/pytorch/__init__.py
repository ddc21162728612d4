"""The runner of pytorch."""
