"""Each of DeepSpeed's settings is decided on: taken where DeepSpeed reads it, and a run with it is exact, or refused
with the reason."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.knobs.fields import KNOBS, OFFLOAD

ROOT = Path(__file__).parents[3]
HOST = {"device": "cpu"}
FIELDS = zero.DeepSpeedZeroConfig.model_fields
VALUES: dict[str, Any] = {  # other than true, which DeepSpeed's model takes
    "contiguous_gradients": False, "reduce_scatter": False, "reduce_bucket_size": 1000, "allgather_bucket_size": 2,
    "use_multi_rank_bucket_allreduce": False, "offload_param": HOST, "offload_optimizer": HOST, "sub_group_size": 100,
    "zenflow": {}, "leaf_module": {"names": ["first"]}, "memory_efficient_linear": False, "zero_hpz_partition_size": 2,
    "ignore_unused_parameters": False,
    **{name: 20 for name, field in FIELDS.items() if field.alias and field.annotation is int},
}  # fmt: skip
FLAT = {"overlap_comm", "allgather_bucket_size", "contiguous_gradients", "round_robin_gradients", "parameter_alignment",
        "use_multi_rank_bucket_allreduce", "ignore_unused_parameters"}  # fmt: skip
SLICED = {"prefetch_bucket_size", "max_live_parameters", "max_reuse_distance", "model_persistence_threshold",
          "use_all_reduce_for_fetch_params", "memory_efficient_linear", "enable_sanity_checks", "leaf_module",
          "log_trace_cache_warnings"}  # fmt: skip
HOSTED = {"offload_optimizer", "offload_param", "allgather_sequential", "reduce_scatter"}
TRIED: list[tuple[tuple[int, ...], set[str]]] = [((1, 2), FLAT), ((3, 3), SLICED), ((3, 3), HOSTED)]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script("state_network")
matrix = script("state_matrix")


def written(name: str) -> str:
    return FIELDS[name].alias or name


def refused(stage: int, options: dict[str, Any], optimizer: str = "adamw", **rest: Any) -> str:
    """What is said of it; nothing where it is taken."""
    values = matrix.recipe(optimizer, stage).model_dump()
    values["zero"] |= {"options": options} | rest
    try:
        zero.check_zero(Recipe.model_validate(values))
    except ConfigError as error:
        return str(error)
    return ""


def test_every_field_of_deepspeed_is_decided_on() -> None:
    assert KNOBS.keys() == FIELDS.keys() - {"stage"}
    offload = importlib.import_module("deepspeed.runtime.zero.offload_config")
    both = offload.DeepSpeedZeroOffloadOptimizerConfig, offload.DeepSpeedZeroOffloadParamConfig
    assert {name for each in both for name in each.model_fields} == OFFLOAD.keys()
    known = {name for name, knob in KNOBS.items() if not knob.refused}
    assert known == FLAT | SLICED | HOSTED | {"reduce_bucket_size", "sub_group_size", "param_persistence_threshold"}


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", KNOBS)
def test_a_field_is_taken_where_it_is_read(name: str, stage: int) -> None:
    """What is said names the field as it was written, its value, and what is allowed: the stages, or why not at all."""
    knob, value = KNOBS[name], VALUES.get(name, True)
    if name == "compute_grad_norm":
        value = knob.allowed
    beside = {"offload_optimizer": HOST} if name == "offload_param" and stage == 3 else {}
    said = refused(stage, {written(name): value} | beside)
    if stage in knob.stages and (not knob.refused or value == knob.allowed):
        assert not said
        return
    assert said.startswith(f"zero.options.{written(name)}: value {value!r}") and "\n" not in said
    why = knob.refused if value != knob.allowed and knob.refused else f"has no effect at zero.stage {stage}; allowed: "
    assert why in said and "allowed: " in said
    if not knob.refused:
        assert ("zero.stage 3," in said) == (knob.stages == (3,))


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        (1, {"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}},
         ["offload_optimizer.device: value 'nvme'; allowed: cpu", "nvme_path: value '/x'; allowed: to leave it out"]),
        (3, {"offload_param": {}, "offload_optimizer": HOST}, ["offload_param.device: value 'none'; allowed: cpu"]),
        (3, {"offload_param": HOST}, ["offload_param: value", "allowed: offload_optimizer={device: cpu} beside it"]),
        (3, {"offload_optimizer": HOST | {"ratio": 0.5}}, ["offload_optimizer.ratio: value 0.5; allowed: 1.0"]),
        (2, {"offload_optimizer": HOST | {"ratio": 1.0}}, ["ratio: value 1.0 has no effect at zero.stage 2"]),
        (3, {"offload_optimizer": HOST | {"super_offload": True}}, ["super_offload: value True", "CPUAdam"]),
        (1, {"offload_optimizer": HOST | {"fast_init": True}}, ["fast_init: value True", "nvme only"]),
        (1, {"offload_optimizer": HOST, "contiguous_gradients": False}, ["contiguous_gradients: value False has no"]),
        (2, {"reduce_scatter": False, "use_multi_rank_bucket_allreduce": True}, ["no effect beside reduce_scatter"]),
        (3, {"stage3_allgather_sequential": True, "stage3_prefetch_bucket_size": 7}, ["bucket_size: value 7 has no"]),
        (1, {"allgather_bucket_size": 7}, ["allgather_bucket_size: value 7 at zero.stage 1; allowed: an even number"]),
        (1, {"reduce_bucket_size": 0}, ["reduce_bucket_size: value 0 at zero.stage 1: Input should be greater"]),
        (3, {"offload_optimizer": {"devise": "cpu"}}, ["zero.options.offload_optimizer.devise: value 'cpu'"]),
        (1, {"compute_grad_norm": False}, ["compute_grad_norm: value False; allowed: True (a NaN would"]),
        (1, {"reduce_bucket_sise": 1, "mics_shard_size": 2}, ["bucket_sise: not a field", "mics_shard_size: not a"]),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(stage: int, options: dict[str, Any], words: list[str]) -> None:
    said = refused(stage, options)
    assert all(word in said for word in words), said


def test_muon_has_whole_gradients() -> None:
    assert "reduce_scatter: value True with muon at zero.stage 3" in refused(3, {"reduce_scatter": True}, "muon")
    assert not refused(3, {"reduce_scatter": False}, "muon")
    assert "offload_optimizer: given with optim.name muon" in refused(3, {"offload_optimizer": HOST}, "muon")


@pytest.mark.distributed
@pytest.mark.parametrize(("stages", "names"), TRIED, ids=["flat", "sliced", "on the host"])
def test_with_what_is_taken_a_run_is_exact(
    stages: tuple[int, ...], names: set[str], tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks and a resume on one, with teachers, constraints and groups, against plain PyTorch: the whole state."""
    plain, options = matrix.recipe, {written(name): VALUES.get(name, True) for name in names}

    def changed(optimizer: str, stage: int) -> Recipe:
        values = plain(optimizer, stage).model_dump()
        values["zero"]["options"].update(options)
        if stage:  # the reference has none
            zero.check_zero(made := Recipe.model_validate(values))
            return made
        return plain(optimizer, stage)

    monkeypatch.setattr(matrix, "WORLDS", (2, 1))
    monkeypatch.setattr(matrix, "recipe", changed)
    worst, where = matrix.cell("adamw", stages, tmp_path / "checkpoints", ranks, matrix.WORLDS)
    assert worst <= matrix.TOLERANCE, where


def reduced(stage: int, bf16: bool, kind: str) -> tuple[dict[str, int], list[float], bool]:
    """On each rank: bytes by dtype of what is reduced in two steps, the losses, and whether weights that are gathered
    are those of the optimizer."""
    sent: dict[str, int] = {}
    for name in ("all_reduce", "reduce", "reduce_scatter_tensor"):  # at stages 1 and 2 each slice goes to its owner
        real = getattr(torch.distributed, name)

        def counted(*given: Any, real: Any = real, **named: Any) -> Any:
            *_, of = (each for each in (*given, *named.values()) if isinstance(each, torch.Tensor))
            if of.numel() > 16:  # norms and flags
                sent[str(of.dtype)] = sent.get(str(of.dtype), 0) + of.nbytes
            return real(*given, **named)

        setattr(torch.distributed, name, counted)
    zero.start()
    values = matrix.recipe("adamw", stage).model_dump()
    values["zero"] |= {"communication_data_type": kind, "options": {}}
    config, network = Recipe.model_validate(values), matrix.Network(seed=0)
    engine = zero.Engine(network, matrix.optimizer_of(network, config), config, micro=4, accum=1, bf16=bf16)
    losses = []
    for step in range(3):
        tokens, target = (part[4 * torch.distributed.get_rank() :][:4] for part in matrix.samples(step))
        loss = engine((tokens, target))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    whole = zero.full_state(network)
    exact = not whole or bool((whole["first.weight"] != whole["first.weight"].bfloat16()).any())
    zero.stop()
    return sent, losses, exact


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (2, True), (3, False)])
def test_gradients_travel_in_the_type_that_was_asked_for(stage: int, bf16: bool, ranks: Any) -> None:
    """Half the bytes, and nearly the same losses: the first the same, later ones not quite. Weights stay fp32."""
    (wide, exact, _), _ = ranks(reduced, 2, stage, bf16, "fp32")
    (narrow, near, whole), _ = ranks(reduced, 2, stage, bf16, "bf16")
    rest = narrow.get("torch.float32", 0)  # statistics of BatchNorm and the like
    assert wide == {"torch.float32": 2 * narrow["torch.bfloat16"] + rest} and rest < narrow["torch.bfloat16"] and whole
    assert near[0] == exact[0] and near != exact and near == pytest.approx(exact, rel=1e-2)


def test_bf16_between_ranks_is_refused_where_weights_would_be_rounded() -> None:
    words = "zero.communication_data_type: value bf16 with precision auto at zero.stage 3"
    assert words in refused(3, {}, communication_data_type="bf16")
    assert not refused(2, {}, communication_data_type="bf16")
