"""What is a frame? Networks that hear sounds: their frames, hidden ones, codes, spectra."""
