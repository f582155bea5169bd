"""Atomic writes, digests, the cache of results, packed bits and run folders."""
