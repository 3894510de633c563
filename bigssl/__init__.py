"""bigssl: self-supervised pretraining of foundation models. Command: `bigssl`."""

__version__ = "0.1.0"
