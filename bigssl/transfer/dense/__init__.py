"""What is where in a picture? Maps of features, the heads that read them, and how these are trained and asked."""
