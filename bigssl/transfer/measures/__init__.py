"""How good are predictions? Pure functions of predictions and truth, each tested against another implementation."""
