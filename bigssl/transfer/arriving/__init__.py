"""What does a folder hold that is to be judged, whoever wrote it: which networks, which heads, what do they take?"""
