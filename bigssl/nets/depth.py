"""How deep in a transformers network each parameter lies, for learning rates that fall from layer to layer."""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PreTrainedModel


def depths(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """(depth by parameter name, the greatest depth): 0 before the first block, n in block n, one more behind the last.

    As in BEiT (Bao et al. 2022): what all blocks share behind them (a table of relative positions) counts as behind the
    last. Blocks are the entries of the network's outermost `nn.ModuleList`s: layers of a transformer, stages of a
    ResNet or Swin. Side by side, lists of equal length are the parts of the same blocks (XLM, PoolFormer).

    Raises:
        ValueError: there are no blocks, lists differ in length, or layers share their weights.
    """
    kind = model.config.model_type
    blocks, length = _blocks(model)
    groups = getattr(model.config, "num_hidden_groups", None)  # ALBERT
    if groups is not None and groups < model.config.num_hidden_layers:
        raise ValueError(f"the layers of {kind} share their weights")
    names = [name for name, _ in model.named_parameters()]
    first = next(index for index, name in enumerate(names) if name in blocks)
    found = {
        name: blocks[name] + 1 if name in blocks else (0 if index < first else length + 1)
        for index, name in enumerate(names)
    }
    return found, length + 1


def _blocks(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """(number of its block by the name of each parameter that lies in one, blocks)."""
    lists = {path: len(module) for path, module in model.named_modules()
             if isinstance(module, nn.ModuleList) and not isinstance(module, ParametrizationList)}  # fmt: skip
    parents: dict[str, dict[str, int]] = defaultdict(dict)
    lengths: dict[str, set[int]] = defaultdict(set)
    held: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        at = next((i for i in range(1, len(parts)) if ".".join(parts[:i]) in lists), 0)
        if at:
            parent = ".".join(parts[: at - 1])
            parents[parent][name] = int(parts[at])
            lengths[parent].add(lists[".".join(parts[:at])])
            held[parent] += getattr(parameter, "ds_numel", parameter.numel())
    if not parents:
        raise ValueError(f"{model.config.model_type} has no list of blocks")
    main = max(held, key=lambda parent: held[parent])  # not the convolutions that wav2vec2 begins with
    if len(lengths[main]) > 1:
        counts = " and ".join(map(str, sorted(lengths[main])))
        raise ValueError(f"{model.config.model_type} has lists of {counts} blocks side by side")
    return parents[main], lengths[main].pop()
