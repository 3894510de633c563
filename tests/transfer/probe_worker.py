"""One rank of the probe's distributed test: `probe_worker.py RANK WORLD FOLDER SETTINGS` saves the probe's numbers."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModel

from bigssl.config import ProbeConfig
from bigssl.transfer.probe import KnnProbe


def main(rank: int, world: int, folder: Path, settings: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    model = AutoModel.from_pretrained(folder / "model")
    forwards: list[int] = []  # sizes of the forward calls
    model.register_forward_hook(lambda _, __, output: forwards.append(len(output.last_hidden_state)))
    found: dict[str, object] = dict(KnnProbe(ProbeConfig.model_validate_json(settings), size=32)(model, "cpu"))
    (folder / f"rank{rank}.json").write_text(json.dumps(found | {"forwards": forwards}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
