"""How is `bigssl doctor` asked, and who answers: this process, ranks that it starts, or ranks of a cluster?"""
