"""Strict modes for all tests, set before JAX is imported.

Two CPU devices, so that sharded execution is tested for real; NPROC at well above twice their number, since XLA sizes
a thread pool by it and collectives of several devices could otherwise wait for each other for ever. Implicit rank
promotion raises. Warnings are errors (pyproject.toml). Caches of programs and of accounting go to a folder of the
session. Programs are compiled with little optimisation, since most tests compile more than they compute; with none at
all the last bits of equal arithmetic would differ between programs.
"""

import os
import tempfile

os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1".strip()
os.environ["FLJAX_CACHE"] = tempfile.mkdtemp(prefix="fljax-test-cache-")
