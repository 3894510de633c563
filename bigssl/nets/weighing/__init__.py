"""How do several losses share weights? Their gradients side by side, and rules that weigh them."""
