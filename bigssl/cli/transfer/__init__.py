"""Commands about what a trained network is worth, and how it leaves -> one file each."""
