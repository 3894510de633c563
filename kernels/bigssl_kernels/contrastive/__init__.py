"""Embeddings of all pairs -> contrastive losses: reference, plain torch, Triton, over ranks."""
