"""Networks that have shapes but no memory, and what a pass through one tells before the real one exists."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bigssl.config.errors import ConfigError

Inputs = Callable[[], dict[str, Any]]


def shapes_only(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every tensor of `module` (in place) by one on the CPU that has a shape but no numbers; ties stay.

    The module is built on `meta` first, as transformers supports for every type: built under `mode`, networks whose
    initialisation looks at numbers (ViT, ConvNeXt, ModernBERT) fail.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, whose address must not be given to another

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with torch.device("cpu"), mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = tensor, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)][1]

    for child in module.modules():
        holders: list[dict[str, object]] = [child._parameters, child._buffers, vars(child)]  # type: ignore[list-item]
        for held in holders:
            held.update({name: twin(value) for name, value in held.items() if isinstance(value, Tensor)})


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
