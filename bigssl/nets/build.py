"""Networks of transformers, made module by module: the same numbers at every ZeRO stage and on any number of ranks.

A network is first described: its modules, buffers and small parameters as the constructor makes them, its weights as
shapes on `meta`. Then it is filled, modules before those that hold them, each from a seed of its own. At ZeRO-3 the
engine takes each layer away in slices once it is filled (`cut`), so that no rank holds more than its share and a layer:

    describe ── allocate a layer ── initialise ── cut ── allocate the next ...

What a parent's initialisation may rewrite are its own weights and its children's: they are cut after their last parent.
"""

from __future__ import annotations

import contextlib
import copy
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils.parametrize import is_parametrized
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import guard_torch_init_functions, no_init_weights

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.nets.allocated import allocate
from bigssl.nets.pretrained import read_as_stored, read_network
from bigssl.nets.timm.folders import is_of_timm, read_timm

Cut = Callable[[list[nn.Parameter]], None]
M = TypeVar("M", bound=nn.Module)
_PLAN = "_to_be_filled"  # attribute of a network that is described and not filled
_TWINS = "_twins"  # attribute of a parameter: those that take its value once it has one


class Step(NamedTuple):
    """A module and its path, with the network whose rules initialise it."""

    path: str
    module: nn.Module
    network: PreTrainedModel


@dataclass
class _Plan:
    """How a network is filled. loaded: from a folder, on rank 0, whence the others get it. twins: see `twin`."""

    seed: int
    steps: list[Step]
    loaded: bool
    twins: list[nn.Module] = field(default_factory=list)


_postponed: list[bool] = []


@contextlib.contextmanager
def postponed(*, main: bool) -> Iterator[None]:
    """Networks made within are only described, until `fill`. main: whether this is rank 0, the one that reads folders
    (what it read it holds as pages of their files, or in host memory, until it is filled)."""
    _postponed.append(main)
    try:
        yield
    finally:
        _postponed.pop()


def create(path: str, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """The bare network of `config`, initialised as transformers does it, from the seed last given to torch.

    Args:
        path: its name in the run, which its seeds depend on.
        options: of AutoModel.from_config.
    """
    model = _described(path, config, options, loaded=False)
    if not _postponed and torch.get_default_device().type != "meta":
        fill(model)
    return model


def load_network(
    path: str, folder: str, config: PreTrainedConfig, *, partial: bool = False, **options: Any
) -> PreTrainedModel:
    """The bare network in `folder`, in float32. Where it is postponed, rank 0 alone reads it.

    Args:
        config: of the network.
        partial: what `folder` lacks may be made anew.
        options: of AutoModel.from_pretrained.
    Raises:
        ConfigError: `folder` does not hold all of it.
    """
    if _postponed and not _postponed[-1]:
        return _described(path, config, {"dtype": torch.float32, **options}, loaded=True)  # whatever is stored
    seed = torch.initial_seed()
    with torch.device("cpu"), _own_randomness():  # on another default device transformers refuses to load
        _sow(seed, path)
        timm = is_of_timm(folder)
        model = read_as_stored(folder, config, **options) if _postponed and not (timm or partial) else None
        if model is None:
            _sow(seed, path)
            model = (read_timm if timm else read_network)(folder, config, partial=partial, **options)
    if _postponed:
        vars(model)[_PLAN] = _Plan(seed, list(_steps(path, model)), loaded=True)
    return model


def fill(root: nn.Module, cut: Cut | None = None) -> None:
    """Give the networks below `root` that are only described their weights. Collective where they were loaded.

    Args:
        cut: takes whole parameters away, in slices; called for each layer once it has its numbers.
    """
    for module in list(root.modules()):
        plan: _Plan | None = vars(module).pop(_PLAN, None)
        if plan is not None:
            _fill(module, plan, cut)


def refuse_derived(root: nn.Module) -> None:
    """Raises ConfigError where a parameter of `root` itself was derived from weights that have no numbers yet."""
    networks = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    described = {id(parameter) for network in networks for parameter in network.parameters()}
    for name, parameter in root.named_parameters():
        if parameter.is_meta and id(parameter) not in described and any(_PLAN in vars(each) for each in networks):
            raise ConfigError(
                f"objective: {name} of {type(root).__name__} is made from the weights of a backbone, which at "
                f"zero.stage 3 have no numbers yet; allowed: made from their shape (torch.zeros(...)) or tied to "
                f"them, or another zero.stage"
            )


def twin(module: M) -> M:
    """A copy of `module` that is whole on this rank, not trained and in fp32, whatever the weights of `module` are.

    Of a network that is only described, the copy gets its numbers when `module` does. Tokenizers are shared.

    Raises:
        RuntimeError: the engine has cut `module` into slices.
    """
    empty = {id(p): _like(p) for p in module.parameters()}
    held = [value for part in module.modules() for value in vars(part).values()]
    shared = {id(value): value for value in held if isinstance(value, PreTrainedTokenizerFast)}
    other = copy.deepcopy(module, dict[int, Any](empty | shared))
    for mine, theirs in zip(other.modules(), module.modules(), strict=True):
        if theirs._compiled_call_impl is not None:  # which is not copied
            mine.compile()
        if vars(mine).pop(_PLAN, None) is not None:
            vars(theirs)[_PLAN].twins.append(mine)
    later = {id(p) for part in module.modules() if _PLAN in vars(part) for p in part.parameters()}
    for parameter in module.parameters():  # one that is filled later may have numbers (a ViT's class token)
        _copy(parameter, empty[id(parameter)], id(parameter) in later)
    return other


def largest_layer(root: nn.Module) -> int:
    """Bytes of a described network below `root` that `fill` holds whole at a time, at most."""
    networks = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    return max((_bytes([*_own(s.module), *_of_children(s.module)]) for n in networks for s in _steps("", n)), default=0)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum({id(parameter): parameter.nbytes for parameter in parameters}.values())


def _described(path: str, config: PreTrainedConfig, options: dict[str, Any], *, loaded: bool) -> PreTrainedModel:
    seed = torch.initial_seed()
    hook = register_module_parameter_registration_hook(_without_numbers)  # type: ignore[arg-type]
    try:
        with no_init_weights(), _own_randomness():
            _sow(seed, path)
            model: PreTrainedModel = AutoModel.from_config(config, **options)
    finally:
        hook.remove()
    model.tie_weights()
    vars(model)[_PLAN] = _Plan(seed, list(_steps(path, model)), loaded)
    return model


def _without_numbers(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    """Weights that their module can initialise again; others keep what the constructor gave them."""
    if parameter is None or parameter.is_meta or not hasattr(module, "reset_parameters"):
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def _steps(path: str, network: PreTrainedModel) -> Iterator[Step]:
    """Every module once, after those within it, with the nearest network around it."""
    seen: set[int] = set()

    def visit(path: str, module: nn.Module, network: PreTrainedModel) -> Iterator[Step]:
        if id(module) in seen:
            return
        seen.add(id(module))
        for name, child in module.named_children() if not is_parametrized(module) else ():
            yield from visit(f"{path}.{name}", child, child if isinstance(child, PreTrainedModel) else network)
        yield Step(path, module, network)

    return visit(path, network, network)


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The module's parameters without its children's; a parametrized one (weight norm) counts as one with its parts."""
    return list(module.parameters(recurse=is_parametrized(module)))


def _of_children(module: nn.Module) -> list[nn.Parameter]:
    return [] if is_parametrized(module) else [p for child in module.children() for p in _own(child)]


@torch.no_grad()
def _fill(model: nn.Module, plan: _Plan, cut: Cut | None) -> None:
    filled, last = set[nn.Parameter](), {id(p): n for n, s in enumerate(plan.steps) for p in _of_children(s.module)}
    with _own_randomness(), guard_torch_init_functions():
        for number, step in enumerate(plan.steps):
            tied = filled.intersection(_own(step.module))
            filled.update(_own(step.module))
            for parameter in _own(step.module):
                allocate(parameter)
            if plan.loaded:
                _take_from_main(_own(step.module))
            else:
                _sow(plan.seed, step.path)
                _initialise(step, tied)
            _done([p for p in _of_children(step.module) if last[id(p)] == number], cut)
    _done(_own(model), cut)
    if plan.loaded:
        _take_from_main(list(model.buffers()))
    for other in plan.twins:
        for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
            theirs.copy_(mine)


def _take_from_main(tensors: list[Any]) -> None:
    for mine, theirs in zip(tensors, distributed.from_main([tensor.detach() for tensor in tensors]), strict=True):
        mine.copy_(theirs)


def _initialise(step: Step, tied: set[nn.Parameter]) -> None:
    """As a constructor of torch, then as transformers; a weight that another module has filled stays as it is."""
    module = step.module
    for parameter in tied:
        vars(parameter)["_is_hf_initialized"] = True  # what transformers' functions look at
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name in module.parametrizations:
            value = torch.empty_like(getattr(module, name))
            setattr(module, name, nn.init.kaiming_uniform_(value, a=math.sqrt(5)))  # as Linear and Conv do
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
    step.network._init_weights(module)
    for parameter in tied:
        del vars(parameter)["_is_hf_initialized"]


def _done(parameters: list[nn.Parameter], cut: Cut | None) -> None:
    for parameter in parameters:
        for other in vars(parameter).pop(_TWINS, ()):
            allocate(other)
            other.copy_(parameter)
    if cut is not None:
        cut(parameters)


def _like(parameter: nn.Parameter) -> nn.Parameter:
    """An empty one in fp32 that is not trained."""
    if parameter.shape != getattr(parameter, "ds_shape", parameter.shape):
        raise RuntimeError("twin: its original is in slices (ZeRO-3); allowed: before the engine exists")
    dtype = torch.float32 if parameter.is_floating_point() else parameter.dtype
    return nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=parameter.device), requires_grad=False)


@torch.no_grad()
def _copy(parameter: nn.Parameter, other: nn.Parameter, later: bool) -> None:
    if later or parameter.is_meta:
        vars(parameter).setdefault(_TWINS, []).append(other)
    else:
        other.copy_(parameter)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _sow(seed: int, path: str) -> None:
    torch.default_generator.manual_seed(zlib.crc32(f"{seed}{path}".encode()))
