"""What is random within a network, by sample and not by rank?"""
