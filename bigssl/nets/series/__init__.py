"""Which networks of series does transformers lack? Their code, which leaves beside their weights."""
