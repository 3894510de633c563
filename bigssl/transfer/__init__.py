"""What is a backbone worth, and how does it leave? Features, evaluations, export."""
