"""Will this recipe run, on these ranks and this data? Checked before anything trains."""
