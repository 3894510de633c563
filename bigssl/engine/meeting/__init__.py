"""Do the ranks of a run find each other, are they alike, and which of them is gone?"""
