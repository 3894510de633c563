"""What DeepSpeed is told of a recipe, as the dictionary that it takes for a configuration file."""

from __future__ import annotations

from typing import Any

from bigssl import distributed
from bigssl.config.recipe import Recipe


def settings_for(recipe: Recipe, *, micro: int, accum: int, bf16: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of a recipe."""
    return {
        "train_batch_size": micro * accum * distributed.world(),
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accum,
        "gradient_clipping": 0.0,  # see clipping.py
        "zero_optimization": {"stage": recipe.zero.stage, **_required_options(recipe), **recipe.zero.options},
        "zero_force_ds_cpu_optimizer": False,  # offloading with torch's AdamW: no C++ compilation at start
        "zero_allow_untested_optimizer": True,  # lamb and lars are ours; tests compare them with one process
        # autocast keeps fp32 weights, which BatchNorm needs; the empty list keeps gradients fp32 between ranks
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 1_000_000_000,
    }


def _required_options(recipe: Recipe) -> dict[str, Any]:
    """Muon orthogonalises whole gradients, which ZeRO-3 has only without reduce-scatter."""
    return {"reduce_scatter": False} if recipe.optim.name == "muon" and recipe.zero.stage == 3 else {}
