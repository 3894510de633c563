"""Steps of the objectives of pictures and series as somebody writes them by hand, for one process: what `objectives.py`
compares with. Each function takes the networks of an objective (copies, BatchNorm as torch has it) and returns what a
step computes of a batch; the maths is that of the objective, which `objectives.py` verifies before it takes times.
"""

from by_hand import content, embedding, series
from by_hand.base import HANDS, ByHand

__all__ = ["HANDS", "ByHand", "content", "embedding", "series"]
