"""Is this machine, or cluster, fit for a run? One file a section of `bigssl doctor`, which answers in verdicts."""
