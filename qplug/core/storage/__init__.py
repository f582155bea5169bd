"""Files: atomic writes, digests, the cache, packed bits and run folders."""
