"""Compression of uploads: fewer values (sparsify), fewer bits each (quantise), what is lost sent later (feedback)."""
