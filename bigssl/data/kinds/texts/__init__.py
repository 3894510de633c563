"""How is running text cut up: into pairs of passages, what goes on token by token, sentences mixed and with holes?"""
