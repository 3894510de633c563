"""What is a trained network worth, what does it give, and how does it leave? Commands of finished runs."""
