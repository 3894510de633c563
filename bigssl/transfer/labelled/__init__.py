"""What do evaluations that learn from labels share?"""
