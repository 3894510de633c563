"""What a pretrained backbone is worth: features, probes, zero-shot, export."""
