"""How do the samples of an optimizer step pass the networks: in how many passes, compared with whom?"""
