"""The run: DeepSpeed wrapper, optimizers, loop, checkpoints, guards."""
