"""Keyed encoding and secure sums, an encrypted channel, homomorphic encryption: what protects uploads on their way."""
