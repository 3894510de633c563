"""What is a text worth to a language model, and what is untidy in it? Characters, scripts, lines, near duplicates."""
