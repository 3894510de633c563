"""Shards, index, exact order, decoding, augmentation, text."""
