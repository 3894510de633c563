"""What makes embeddings of features, and what is said of those of a whole batch?"""
