"""What do evaluations that read texts token by token share?"""
