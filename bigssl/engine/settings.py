"""What DeepSpeed is told of a recipe, as the dictionary that it takes for a configuration file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe

BUCKET = 500_000_000  # elements: DeepSpeed's own default, 1.9 GiB, whatever the size of the network
PARTS, LEAST = 8, 4_194_304  # buckets that a backward pass fills, so that all but the last travel while it goes on; of
# less than 16 MiB, a message takes as long as its way
HOP, RATE, SPARE = 5e-6, 20e9, 1e-3  # seconds from rank to rank, bytes a second, seconds that no step notices


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

    Gradients travel while the backward pass goes on (overlap_comm, on a GPU; a CPU has no second stream), in buckets,
    of which DeepSpeed allocates two at stages 1 and 2.
    """
    sizes = [p.numel() for p in module.parameters() if p.requires_grad]
    trained = max(sum(sizes), 1)
    chosen: dict[str, Any] = {
        "reduce_bucket_size": min(trained, BUCKET, max(LEAST, *sizes, trained // PARTS)),
        "overlap_comm": stage > 0,
        "use_multi_rank_bucket_allreduce": not _slices_pay(trained, distributed.world()),
    }
    if recipe.optim.name == "muon" and stage == 3:
        chosen["reduce_scatter"] = False  # Muon orthogonalises whole gradients, which ZeRO-3 has only so
    return {"stage": stage, **chosen, **recipe.zero.options}


def _slices_pay(trained: int, world: int) -> bool:
    """Whether stages 1 and 2 reduce each slice of the gradients to the rank that owns it, half of the bytes of the
    all-reduce of which it keeps its slice, but `world` messages that go round all ranks: too slow where these are many
    and the network is small."""
    return world * world * HOP <= max(SPARE, 4 * trained / RATE)


PARALLEL = ("tensor_parallel", "autotp_size", "tp_size", "sequence_parallel_size", "pipeline")
"""What DeepSpeed calls ways to share one sample among ranks."""
WHY_NOT = "each rank has samples of its own here: losses, clipping and batches count over all ranks (docs/parallel.md)"


def check_parallel(options: Iterable[str]) -> None:
    """Refuse, among `zero.options`, what shares one sample among ranks. Raises ConfigError."""
    for option in options:
        if option in PARALLEL:
            raise ConfigError(f"zero.options.{option}: tensor, sequence and pipeline parallelism are not for bigssl: "
                              f"{WHY_NOT}; allowed: leave it out, and zero.stage=3 where a network does not fit a rank")


def check_data_parallel(data_parallel: int) -> None:
    """Refuse what was shared among ranks by other ways than a recipe's (deepspeed.tp_model_init, Ulysses).

    data_parallel: ranks among which DeepSpeed takes means of gradients. Raises RuntimeError.
    """
    if data_parallel != distributed.world():
        raise RuntimeError(f"DeepSpeed takes means of gradients over {data_parallel} of {distributed.world()} ranks, "
                           f"and shares samples among the others: {WHY_NOT}; leave out tensor and sequence parallelism")
