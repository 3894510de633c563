"""How does a checked recipe become trained weights? DeepSpeed behind a few verbs, loop, checkpoints, guards."""
