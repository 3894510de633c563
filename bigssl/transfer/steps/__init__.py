"""What do evaluations that judge the steps of a series share? Long series, windows of them, and what costs no network."""
