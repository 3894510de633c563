"""Fused contrastive and masked-token losses."""
