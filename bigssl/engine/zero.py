"""DeepSpeed behind a few verbs; the only file that imports it. What it gets wrong in silence is refused or mended."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

os.environ.setdefault("DS_BUILD_OPS", "0")
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns on every rank that it found no GPU
import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME  # noqa: E402
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: E402
from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param  # noqa: E402

from bigssl import distributed  # noqa: E402
from bigssl.config.errors import ConfigError, nearest  # noqa: E402
from bigssl.config.recipe import Recipe  # noqa: E402
from bigssl.engine.clipping import clip_gradients  # noqa: E402
from bigssl.engine.constraints import apply_constraints, check_constraints  # noqa: E402
from bigssl.engine.knobs.check import check_knobs  # noqa: E402
from bigssl.engine.launcher import free_port  # noqa: E402
from bigssl.engine.layerwise import Layerwise  # noqa: E402
from bigssl.engine.layout import clear_padding, flat_tensors, layout_of  # noqa: E402
from bigssl.engine.meeting.network import choose_interfaces, waiting_for_others  # noqa: E402
from bigssl.engine.restore import restore  # noqa: E402
from bigssl.engine.saved import TAG, SavedState, Saver  # noqa: E402
from bigssl.engine.settings import check_data_parallel, check_parallel, settings_for, zero_options  # noqa: E402
from bigssl.nets.build import fill  # noqa: E402


def start() -> torch.device:
    """Join the process group of the launcher (a group of one without a launcher); returns this rank's device.

    Raises:
        NoMeeting: there is no way to the other ranks.
    """
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed calls what torch 2.13 renamed
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("BIGSSL_DEEPSPEED_LOG", "WARNING"))
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    accelerator = get_accelerator()
    device = torch.device(accelerator.device_name())
    if device.type != "cpu":
        local = int(os.environ["LOCAL_RANK"])
        accelerator.set_device(local)
        device = torch.device(device.type, local)
    # DeepSpeed would compile a C++ all-reduce on a CPU (minutes; hangs on a stale lock). gloo does without it.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    backend = "gloo" if device.type == "cpu" else accelerator.communication_backend_name()
    choose_interfaces(backend)
    with waiting_for_others() as patience:
        deepspeed.init_distributed(dist_backend=backend, timeout=patience)
    return device


def stop() -> None:
    """Leave the process group, so that the backend's threads end before the interpreter does."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def canonical_options() -> dict[str, str]:
    """Every name by which DeepSpeed takes a field of `zero_optimization`, with the one that knobs/fields.py has."""
    fields = DeepSpeedZeroConfig.model_fields
    return {n: name for name, field in fields.items() for n in (name, field.alias) if n and name != "stage"}


def check_zero(recipe: Recipe) -> None:
    """Refuse DeepSpeed settings that it does not know, would ignore at the recipe's stage, or loses state by.

    Raises:
        ConfigError: field, value, stage and what is allowed, a line for each.
    """
    canonical, stage, options = canonical_options(), recipe.zero.stage, recipe.zero.options
    allowed = sorted(canonical)
    check_parallel(options)
    if unknown := [option for option in options if option not in canonical]:
        raise ConfigError(*(
            f"zero.options.{name}: not a field of DeepSpeed's zero_optimization{nearest(name, allowed)}"
            for name in unknown
        ))  # fmt: skip
    try:
        DeepSpeedZeroConfig(stage=stage, **options)
    except ValidationError as error:
        raise ConfigError(*(_wrong(item, stage) for item in error.errors())) from None
    check_knobs(recipe, canonical)


def _wrong(item: Any, stage: int) -> str:
    """A mistake that DeepSpeed's own model found."""
    field = ".".join(map(str, ("zero.options", *item["loc"])))
    return f"{field}: value {item['input']!r} at zero.stage {stage}: {item['msg']}"


@dataclass(frozen=True)
class Settings:
    """What DeepSpeed allocates by, resolved from a recipe's options: sizes in elements, what lives on the host."""

    buckets: int
    persistent: int
    live: int
    optimizer_on_host: bool
    parameters_on_host: bool


def settings_of(recipe: Recipe, stage: int, module: nn.Module) -> Settings:
    """The recipe's (checked) options for `module` at `stage`: its own, or another that it might use."""
    config = DeepSpeedZeroConfig(**zero_options(recipe, stage, module))
    doubled = 2 if stage in (1, 2) and config.overlap_comm else 1
    return Settings(
        buckets=doubled * config.reduce_bucket_size if stage and config.contiguous_gradients else 0,
        persistent=config.param_persistence_threshold,
        live=config.max_live_parameters,
        optimizer_on_host=stage > 0 and config.offload_optimizer is not None,
        parameters_on_host=stage == 3 and config.offload_param is not None,
    )


class Engine:
    """A module under DeepSpeed. All methods are collective: call them on every rank."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, *, micro: int, accum: int,
                 bf16: bool) -> None:
        settings = settings_for(recipe, module, micro=micro, accum=accum, bf16=bf16)
        self._stage, self._norm, self._dropped = recipe.zero.stage, torch.zeros(()), 0
        self._constraints = check_constraints(module)
        if bf16 and recipe.zero.communication_data_type == "bf16":  # under autocast DeepSpeed asks each parameter
            for parameter in module.parameters():
                setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)
        with _quiet():
            if self._stage == 3:
                cut(module, settings)
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        check_data_parallel(int(self._engine.dp_world_size))
        if self._stage == 0 and distributed.world() == 1:
            self._engine.enable_backward_allreduce = False  # there is nobody: spares copies of all gradients
        self._saver = Saver(self._engine, self._stage)
        if self._stage:
            layout = layout_of(self._engine.module, self._engine.optimizer, self._stage, distributed.world())
            tensors, rank = flat_tensors(self._engine.optimizer, self._stage), distributed.rank()
            clear_padding(layout, tensors, rank)
            if isinstance(optimizer, Layerwise):
                optimizer.see_slices(layout, tensors, rank)

    def __call__(self, *arguments: Any) -> Any:
        return self._engine(*arguments)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        """After each backward; applies the update on the last one of an accumulation, then the module's constraints.

        A gradient that is NaN or infinite on any rank changes no weights and no optimizer state on any: see `skipped`.
        At stage 0 the host waits for the device once a step, for the norm by which it decides whether to skip.
        """
        if self._engine.is_gradient_accumulation_boundary():
            self._norm = clip_gradients(self._engine.optimizer, self._stage, self._engine.device)
            if self._stage == 0 and not math.isfinite(self._norm):  # which the other stages skip by themselves
                self._step_without_update()
                return
        self._engine.step()
        if self._constraints and self.applied:
            self._constrain()

    def _constrain(self) -> None:
        """Weights as constraints have them, on every rank and in the optimizer's masters."""
        parameters = [p for constraint in self._constraints for p in constraint.parameters]
        with gathered(parameters, write=True):
            apply_constraints(self._constraints)
        for parameter in parameters:
            if self._stage == 3:
                safe_set_local_fp32_param(parameter, parameter.ds_tensor)  # type: ignore[attr-defined]
            else:
                safe_set_full_fp32_param(parameter, parameter.data)

    def _step_without_update(self) -> None:
        optimizer = self._engine.optimizer
        optimizer.step = lambda: None  # without gradients Muon would still move the weights
        try:
            self._engine.step()
        finally:
            del optimizer.step
        self._dropped += 1
        self._engine._step_applied = False

    @property
    def applied(self) -> bool:
        """Whether the last `step` changed weights: it ended an accumulation, and the gradient was finite."""
        return bool(self._engine.was_step_applied())

    @property
    def skipped(self) -> int:
        """Optimizer steps of this process that changed nothing because a gradient was not finite."""
        return int(self._engine.skipped_steps) + self._dropped

    @property
    def groups(self) -> list[dict[str, Any]]:
        return list(self._engine.optimizer.param_groups)

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before clipping; with Muon at stages 1 and 2, of its update:
        DeepSpeed orthogonalises there before it can be asked."""
        return float(self._norm)

    def save(self, folder: Path) -> None:
        """See `Saver.save`."""
        self._saver.save(folder)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, on any number of ranks and at any stage.

        Raises:
            StateError: it is the state of other networks.
        """
        saved = SavedState(folder, TAG)
        restore(self._engine.module, self._engine.optimizer, self._stage, saved)
        for name, count in saved.counters.items():
            setattr(self._engine, name, count)


def cut(module: nn.Module, settings: dict[str, Any]) -> None:
    """Bring `module` to the ranks' devices in slices, networks that are only described one layer at a time."""
    init = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)
    fill(module, init._convert_to_zero_parameters)
    init._convert_to_zero_parameters(module.parameters())
    module.to(init.local_device)  # buffers


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """Within it, `parameters` are whole on every rank also at ZeRO-3. Collective.

    write: what rank 0 makes of them is kept.
    """
    sliced = [p for p in parameters if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(sliced, modifier_rank=0 if write else None, enabled=bool(sliced)):
        yield


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of `module` with whole parameters, copied to CPU, on rank 0; empty elsewhere. Collective.

    Gathers one layer at a time: no device has to hold a model that only fits in slices.
    """
    state: dict[str, Tensor] = {}
    names = module.state_dict().keys()
    for prefix, layer in module.named_modules():
        with gathered(layer.parameters(recurse=False)), torch.no_grad():
            for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                key = f"{prefix}.{name}" if prefix else name
                if distributed.is_main() and key in names:
                    state[key] = value.detach().cpu().clone()
    return state


def muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) with AdamW for the rest: DeepSpeed's, the only one that orthogonalises under ZeRO."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return optimizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints its whole configuration to stdout; keep it for those who ask."""
    if os.environ.get("BIGSSL_DEEPSPEED_LOG"):
        yield
        return
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        yield
