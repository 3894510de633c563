"""What is a sample? Pictures, text, series, audio; augmentation, masking, packing."""
