"""What DeepSpeed is told of a recipe, as the dictionary that it takes for a configuration file."""

from __future__ import annotations

from typing import Any

from torch import nn

from bigssl import distributed
from bigssl.config.recipe import Recipe

BUCKET = 500_000_000  # elements: DeepSpeed's own default, 1.9 GiB, whatever the size of the network


def settings_for(recipe: Recipe, module: nn.Module, *, micro: int, accum: int, bf16: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of a recipe for the module that it trains, whole or only described."""
    return {
        "train_batch_size": micro * accum * distributed.world(),
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accum,
        "gradient_clipping": 0.0,  # see clipping.py
        "communication_data_type": recipe.zero.communication_data_type,  # under autocast see `Engine`
        "zero_optimization": zero_options(recipe, recipe.zero.stage, module),
        "zero_force_ds_cpu_optimizer": False,  # offloading with torch's AdamW: no C++ compilation at start
        "zero_allow_untested_optimizer": True,  # lamb and lars are ours; tests compare them with one process
        # autocast keeps fp32 weights, which BatchNorm needs; the empty list keeps gradients fp32 between ranks
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 1_000_000_000,
    }


def zero_options(recipe: Recipe, stage: int, module: nn.Module) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` at `stage`; what the recipe gives comes before what is chosen here.

    A reduce bucket holds the gradients of all that is trained, and no more: DeepSpeed allocates it whole.
    """
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    chosen: dict[str, Any] = {"reduce_bucket_size": min(max(trained, 1), BUCKET)}
    if recipe.optim.name == "muon" and stage == 3:
        chosen["reduce_scatter"] = False  # Muon orthogonalises whole gradients, which ZeRO-3 has only so
    return {"stage": stage, **chosen, **recipe.zero.options}
