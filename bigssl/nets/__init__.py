"""What is trained? Backbones (transformers classes built from a config), heads, dropout, norms."""
