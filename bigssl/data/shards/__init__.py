"""Bytes -> samples' places: tars, compression, the index and its sidecars, damage."""
