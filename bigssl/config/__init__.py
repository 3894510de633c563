"""What may a recipe say? Typed sections, loading, errors, limits."""
