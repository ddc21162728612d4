"""The runner of jax."""
