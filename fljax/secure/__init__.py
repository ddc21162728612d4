"""Secrets around a round: encoded integers, masks, secure sums, an encrypted channel, homomorphic encryption."""
