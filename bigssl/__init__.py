"""bigssl: self-supervised pretraining of foundation models. The commands are `bigssl` and `deepspeed bigssl/train.py`."""

__version__ = "0.1.0"
