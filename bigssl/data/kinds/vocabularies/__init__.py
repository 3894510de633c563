"""How does a vocabulary come out of texts? Its characters, its pieces, its special tokens."""
