"""How are the networks of timm those of transformers? Names of weights, and folders."""
