"""The runner of flower."""
