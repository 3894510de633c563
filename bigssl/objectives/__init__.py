"""One file per pretext task; see base.py for the contract."""
