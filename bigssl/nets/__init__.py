"""Backbones (transformers classes built from a config) and heads."""
