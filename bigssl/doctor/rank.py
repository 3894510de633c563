"""A rank of `bigssl doctor`, which starts two by itself. On a cluster, as `bigssl/train.py` is started there:
`deepspeed --hostfile hosts bigssl/doctor/rank.py --config R`, `torchrun ... bigssl/doctor/rank.py --config R`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Run as a script, Python puts this folder first on the path, where `network` or `data` would shadow other packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

if __name__ == "__main__":
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # the launcher numbers ranks by it, which shows GPUs that were hidden
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from bigssl.cli.main import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
