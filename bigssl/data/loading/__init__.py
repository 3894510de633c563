"""Samples in order -> batches: worker processes, watchdog, the record of what was trained on."""
