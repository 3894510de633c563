"""What do evaluations that judge the steps of a series share? Long series, windows, what needs no network."""
