"""What may be typed? One file a group of `bigssl ...` commands."""
