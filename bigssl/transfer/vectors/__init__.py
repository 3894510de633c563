"""How do the vectors of a dataset, or of what a program holds, come out of a network?"""
