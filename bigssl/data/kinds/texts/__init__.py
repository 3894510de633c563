"""How is running text cut up: into passages and pairs of them, into what goes on from one token to the next, into
sentences in another order with holes?"""
