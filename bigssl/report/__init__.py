"""What does a run show? Metrics writers, progress, the HTML report."""
