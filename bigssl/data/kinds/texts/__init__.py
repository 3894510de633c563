"""How is running text cut up for a network that is to go on with it?"""
