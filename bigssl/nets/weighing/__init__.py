"""Several losses over shared weights: their gradients side by side, and rules that weigh them."""
