"""Which sample stands at position p? Lanes, mixtures, randomness as a function of position."""
