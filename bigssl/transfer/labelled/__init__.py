"""What do evaluations that learn from labels share? Examples, trials over fractions and seeds, training, their rows."""
