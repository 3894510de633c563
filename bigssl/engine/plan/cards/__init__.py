"""Which ZeRO stage, offload and micro-batch does a recipe need on this card?"""
