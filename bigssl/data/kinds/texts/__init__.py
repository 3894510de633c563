"""What does a task read of documents of several sentences? Passages, pairs of them."""
