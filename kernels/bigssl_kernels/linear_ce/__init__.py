"""Hidden states -> cross-entropy of a linear layer, without its logits: plain torch, Triton, over ranks."""
