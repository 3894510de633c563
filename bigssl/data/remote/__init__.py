"""A URL -> bytes: clients, retries, the cache on disk, commands."""
