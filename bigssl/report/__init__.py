"""Metrics writers, progress, HTML report."""
