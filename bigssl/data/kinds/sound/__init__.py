"""What is made of a sound? Silence cut off, windows, changes, stretches of frames."""
