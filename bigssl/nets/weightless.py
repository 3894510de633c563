"""Networks that have shapes but no memory, and what a pass through one tells before the real one exists."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError

Inputs = Callable[[], dict[str, Any]]
M = TypeVar("M", bound=nn.Module)


def shapes_only(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every tensor of `module` (in place) by one on the CPU that has a shape but no numbers; ties stay.

    The module is built on `meta` first, as transformers supports for every type: built under `mode`, networks whose
    initialisation looks at numbers (ViT, ConvNeXt, ModernBERT) fail.
    """
    with torch.device("cpu"), mode:
        made = {id(tensor): (tensor, _empty_like(tensor)) for tensor in _tensors(module)}  # kept: ids are addresses
    for held in _holders(module):
        held.update({name: made[id(value)][1] for name, value in held.items() if isinstance(value, Tensor)})


SHAPES = FakeTensorMode(allow_non_fake_inputs=True)
"""Of `without_numbers`; one for the process, as networks keep what they computed."""


@contextlib.contextmanager
def on_shapes() -> Iterator[None]:
    """Within it, tensors are made without numbers. They say that they are on `meta`: what networks keep by device (the
    positions of DINOv3, in a cache of the process), a real pass does not find."""
    with SHAPES, torch.device("meta"), quiet():
        yield


def without_numbers(module: M, *beside: nn.Module) -> M:
    """A copy of `module` for a pass `on_shapes`; `module` stays as it is. Tokenizers are shared.

    beside: modules that it holds without being their parent, such as teachers.
    """
    parts: list[nn.Module] = [module, *beside]
    with on_shapes():
        memo: dict[int, Any] = {id(tensor): _empty_like(tensor) for part in parts for tensor in _tensors(part)}
    values = [value for part in parts for held in _holders(part) for value in held.values()]
    memo |= {id(value): value for value in values if isinstance(value, PreTrainedTokenizerFast)}
    return copy.deepcopy(module, memo)


def _holders(module: nn.Module) -> Iterator[dict[str, object]]:
    """Where the modules of `module` keep tensors."""
    for child in module.modules():
        yield from (child._parameters, child._buffers, vars(child))  # type: ignore[misc]


def _tensors(module: nn.Module) -> list[Tensor]:
    found = {id(value): value for held in _holders(module) for value in held.values() if isinstance(value, Tensor)}
    return list(found.values())


def _empty_like(tensor: Tensor) -> Tensor:
    """Weights in half precision lie as a file has them (`load_network`): they are trained in float32."""
    if not isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return nn.Parameter(torch.empty(tensor.shape, dtype=dtype), tensor.requires_grad)


def feature_size(
    field: str,
    config: PreTrainedConfig,
    inputs: Inputs,
    features: Callable[[PreTrainedModel, dict[str, Any]], Tensor],
    check: Callable[[PreTrainedModel], None],
) -> int:
    """Features per sample of the network that `config` describes, found by a pass of two samples through it.

    The pass is on `meta`, shapes alone; where that fails, on a network with numbers, so that the verdict is what
    training would meet. (Tensors of a FakeTensorMode claim to be on the CPU: some networks, DINOv3's, would keep what
    they computed and later mix it with real ones.)

    Args:
        field: recipe field that says what the network is, for the error.
        inputs: makes the model's inputs for two samples.
        features: of the model and these, [2, D].
        check: refuses a network by a ConfigError, before the pass.
    Raises:
        ConfigError: the network cannot be built, is refused, or cannot take the inputs.
    """

    def width(device: str) -> int:
        with torch.device(device), torch.no_grad():
            model = AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager").eval()  # shapes are equal
            check(model)
            found = features(model, inputs())
        if found.shape[:-1] != (2,):
            raise ValueError(f"features of 2 samples have shape {tuple(found.shape)}")
        return int(found.shape[-1])

    try:
        return width("meta")
    except ConfigError:
        raise
    except Exception:  # a network that looks at numbers, or one that cannot do it: the next pass tells
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            return width("cpu")
    except ConfigError:
        raise
    except Exception as error:  # whatever the network raises
        text = " ".join(str(error).split())[:300]
        shapes = ", ".join(f"{n} {list(value.shape)}" for n, value in inputs().items() if isinstance(value, Tensor))
        given = f"{field}: no such network, or it takes no {shapes}"
        raise ConfigError(f"{given}: {type(error).__name__}: {text}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's own traceback of a pass on shapes that fails: what it means is one line of ours."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
