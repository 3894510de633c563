"""The tasks of the scorecard: each gives, per query, whether the trained network and its baselines were right."""
