"""Which of DeepSpeed's settings may a recipe give, and where do they have an effect?"""
