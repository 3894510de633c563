"""What is learnt without labels? One file per pretext task; base.py is the contract."""
