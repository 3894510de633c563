"""What do tasks put on top of a backbone, and beside it? Heads, prototypes, queues, discriminators."""
