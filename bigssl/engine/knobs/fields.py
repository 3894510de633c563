"""Every field of DeepSpeed's `zero_optimization` (0.19.8): at which ZeRO stages it is read, or why a recipe may not set
it. A test compares the names with DeepSpeed's own, so that a version with other fields is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knob:
    """One field. stages: where DeepSpeed reads it. refused: why no recipe may give it (or another value than the one
    `allowed`); empty: it may."""

    stages: tuple[int, ...] = ()
    refused: str = ""
    allowed: Any = None


SHARDED, FLAT, SLICED = (1, 2, 3), (1, 2), (3,)
_OTHER_LOADER = "checkpoints are read by bigssl, tensor by tensor, not by DeepSpeed"
_DEPRECATED = "DeepSpeed has another name for it: give {}"
_LOST = "a checkpoint would not hold the whole state"
_UNREAD = "DeepSpeed 0.19.8 reads it nowhere"
_ROUNDED = (
    "weights that are gathered would be rounded to 8 bits, those of teachers, evaluations and exports too, and "
    "DeepSpeed refuses it beside the autocast that bf16 runs compute under"
)
_NVME_ONLY = "of use with device nvme only"
NVME = (
    "a checkpoint would not hold the whole state: what is swapped out, DeepSpeed copies file by file, each named after "
    "an object of one process, so that it cannot be read by name, nor on another number of ranks"
)

KNOBS: dict[str, Knob] = {
    "contiguous_gradients": Knob(SHARDED),
    "reduce_scatter": Knob(SHARDED),
    "reduce_bucket_size": Knob(SHARDED),
    "use_multi_rank_bucket_allreduce": Knob(FLAT),
    "allgather_partitions": Knob(refused=_UNREAD),
    "allgather_bucket_size": Knob(FLAT),
    "overlap_comm": Knob(SHARDED),
    "compute_grad_norm": Knob(FLAT, "a NaN would be applied unseen", allowed=True),
    "load_from_fp32_weights": Knob(refused=_OTHER_LOADER),
    "elastic_checkpoint": Knob(refused=_LOST),
    "offload_param": Knob(SLICED),
    "offload_optimizer": Knob(SHARDED),
    "zenflow": Knob(refused=_LOST),
    "sub_group_size": Knob(SLICED),
    "cpu_offload_param": Knob(refused=_DEPRECATED.format("offload_param={device: cpu}")),
    "cpu_offload_use_pin_memory": Knob(refused=_DEPRECATED.format("offload_optimizer.pin_memory")),
    "cpu_offload": Knob(refused=_DEPRECATED.format("offload_optimizer={device: cpu}")),
    "prefetch_bucket_size": Knob(SLICED),
    "param_persistence_threshold": Knob(SLICED),
    "model_persistence_threshold": Knob(SLICED),
    "max_live_parameters": Knob(SLICED),
    "max_reuse_distance": Knob(SLICED),
    "gather_16bit_weights_on_model_save": Knob(refused="bigssl exports fp32 weights itself, whatever the stage"),
    "stage3_gather_fp16_weights_on_model_save": Knob(refused="bigssl exports fp32 weights itself, whatever the stage"),
    "module_granularity_threshold": Knob(
        refused="where it makes a leaf of the whole task, ranks fail and wait for one another; leaf_module names the "
        "modules that are meant"
    ),
    "use_all_reduce_for_fetch_params": Knob(SLICED),
    "allgather_sequential": Knob(SLICED),
    "ignore_unused_parameters": Knob(FLAT),
    "legacy_stage1": Knob(refused="DeepSpeed has it no more"),
    "round_robin_gradients": Knob(FLAT),
    "parameter_alignment": Knob(FLAT),
    "zero_hpz_partition_size": Knob(
        refused="copies within a node are stale where teachers, constraints and resumes have been at work: weights off "
        "by .09 after 12 steps of benchmarks/state_matrix.py (plain training is exact)", allowed=1
    ),
    "zero_quantized_weights": Knob(refused=_ROUNDED),
    "zero_quantized_nontrainable_weights": Knob(refused=_ROUNDED),
    "zero_quantized_gradients": Knob(
        refused="its kernel reads gradients as fp16, and those of bigssl are fp32: other numbers, without an error"
    ),
    "memory_efficient_linear": Knob(SLICED),
    "pipeline_loading_checkpoint": Knob(refused=_OTHER_LOADER),
    "override_module_apply": Knob(refused="bigssl makes networks without the context that it belongs to"),
    "log_trace_cache_warnings": Knob(SLICED),
    "enable_sanity_checks": Knob(SLICED),
    "save_muon_momentum_buffer_in_memory": Knob(refused=_NVME_ONLY),
    "leaf_module": Knob(SLICED),
}
OFFLOAD: dict[str, Knob] = {  # fields of offload_optimizer and offload_param
    "device": Knob(SHARDED, NVME, allowed="cpu"),
    "pin_memory": Knob(SHARDED),
    "nvme_path": Knob(refused=_NVME_ONLY),
    "buffer_count": Knob(refused=_NVME_ONLY),
    "buffer_size": Knob(refused=_NVME_ONLY),
    "max_in_cpu": Knob(refused=_NVME_ONLY),
    "pipeline_read": Knob(refused=_NVME_ONLY),
    "pipeline_write": Knob(refused=_NVME_ONLY),
    "fast_init": Knob(refused=_NVME_ONLY),
    "ratio": Knob(SLICED, "a part of the state would lie in a second optimizer, which DeepSpeed has for its own "
                          "CPUAdam only", allowed=1.0),  # fmt: skip
    "super_offload": Knob(refused="it is for DeepSpeed's own CPUAdam, which bigssl does not compile"),
    "cpuadam_cores_perc": Knob(refused="of use with super_offload only"),
}
