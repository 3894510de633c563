"""Which networks of pictures have a name? Their sizes, and the ResNet for small pictures that transformers lacks."""
