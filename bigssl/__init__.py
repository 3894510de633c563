"""bigssl: self-supervised pretraining of foundation models. Commands: `bigssl`, `deepspeed bigssl/train.py`."""

__version__ = "0.1.0"
