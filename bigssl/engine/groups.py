"""Which parameter is treated how: groups that recipes and objectives ask for, decay by name, rates by depth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from torch import nn

from bigssl.config.errors import ConfigError
from bigssl.config.optim import NOT_DECAYED, WITHOUT_BETAS, Group, OptimConfig, PartGroup
from bigssl.config.recipe import Recipe
from bigssl.nets.depth import depths
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective, task_name

REST = -1  # what no group asks for


@dataclass(frozen=True, order=True)
class Treatment:
    """What parameters of one optimizer group have in common.

    role: place of its `Group` among those asked for, REST where there is none; factor: on the rate, from the group and
    from the depth.
    """

    role: int
    muon: bool
    decayed: bool
    factor: float


@dataclass(frozen=True)
class Asked:
    """A group, and the field that asks for it."""

    field: str
    group: Group


def asked_groups(module: nn.Module, config: OptimConfig) -> list[Asked]:
    """Those of the recipe, then those of the objective, which knows no optimizer: without betas where that has none,
    and without a clip where the recipe does not clip. For each parameter the first that matches counts."""
    idle = ({"betas": None} if config.name in WITHOUT_BETAS else {}) | ({} if config.clip else {"clip": None})
    own = [group.model_copy(update=idle) for group in module.groups()] if isinstance(module, Objective) else []
    whole = task_name(type(module)) if isinstance(module, Objective) else ""  # of others there are none of its own
    return [
        *(Asked(f"optim.groups.{number}", group) for number, group in enumerate(config.groups)),
        *(Asked(f"groups() of {_prefix(group).rstrip('.') or whole}", group) for group in own),
    ]


def treatments(module: nn.Module, config: OptimConfig) -> dict[nn.Parameter, Treatment]:
    """How each trained parameter of `module` is treated, in the order of `named_parameters`.

    Raises:
        ConfigError: a pattern without a match, or a setting without an effect.
    """
    names = trained_names(module)
    asked = asked_groups(module, config)
    roles = _roles(names, asked)
    depth = _by_depth(module, config.layer_decay)
    kept = _not_decayed(names, config.no_decay)
    matrices = _hidden_matrices(module) - kept if config.name == "muon" else set()
    found = {}
    for parameter in names:
        role = roles[parameter]
        factor = depth.get(parameter, 1.0) * (asked[role].group.lr if role != REST else 1.0)
        found[parameter] = Treatment(role, parameter in matrices, parameter not in kept, factor)
    _refuse_idle(asked, found, config)
    return found


def trained_names(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each trained parameter: one that two parts of an objective share has two."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            found.setdefault(parameter, []).append(name)
    return found


def _roles(names: dict[nn.Parameter, list[str]], asked: Sequence[Asked]) -> dict[nn.Parameter, int]:
    matches = {
        parameter: [number for number, each in enumerate(asked) if any(map(each.group.matches, spellings))]
        for parameter, spellings in names.items()
    }
    for number, each in enumerate(asked):
        takers = {found[0] for found in matches.values() if number in found}
        if not takers:
            raise ConfigError(f"{_where(each)} matches no trained parameter; nearest: {_near(each, names)}")
        # the recipe may take over all of a group that an objective asks for
        if number not in takers and all(_of_recipe(asked[taker]) == _of_recipe(each) for taker in takers):
            others = ", ".join(f"{asked[taker].field} ({asked[taker].group.pattern!r})" for taker in sorted(takers))
            raise ConfigError(
                f"{_where(each)} matches only parameters that {others} took before; nearest of the others: "
                f"{_near(each, {p: n for p, n in names.items() if not matches[p]} or names)}"
            )
    return {parameter: found[0] if found else REST for parameter, found in matches.items()}


def _of_recipe(each: Asked) -> bool:
    return each.field.startswith("optim")


def _where(each: Asked) -> str:
    return f"{each.field}.pattern: value {each.group.pattern!r}"


def _near(each: Asked, names: dict[nn.Parameter, list[str]]) -> str:
    return _nearest(each.group.pattern, names, _prefix(each.group))


def _prefix(group: Group) -> str:
    return group.prefix if isinstance(group, PartGroup) else ""


def _nearest(pattern: str, names: dict[nn.Parameter, list[str]], prefix: str = "") -> str:
    """The parameter whose name, below `prefix`, has most of the pattern in it."""
    matcher = SequenceMatcher(None, b=pattern, autojunk=False)

    def likeness(name: str) -> tuple[int, int]:
        matcher.set_seq1(name.removeprefix(prefix))
        return sum(block.size for block in matcher.get_matching_blocks()), -len(name)

    every = [name for spellings in names.values() for name in spellings]
    return max([name for name in every if name.startswith(prefix)] or every, key=likeness)


def _not_decayed(names: dict[nn.Parameter, list[str]], patterns: list[str]) -> set[nn.Parameter]:
    kept = {parameter for parameter in names if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1}
    for number, pattern in enumerate(patterns):
        found = {p for p, spellings in names.items() if any(re.search(pattern, name) for name in spellings)}
        if not found and pattern not in NOT_DECAYED:
            raise ConfigError(
                f"optim.no_decay.{number}: value {pattern!r} matches no trained parameter; nearest: "
                f"{_nearest(pattern, names)}"
            )
        kept |= found
    return kept


def _by_depth(module: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """decay^(layers above) of each parameter of a backbone."""
    factors: dict[nn.Parameter, float] = {}
    for path, tower in module.named_modules() if decay < 1 else ():
        if not isinstance(tower, Tower):
            continue
        try:
            found, last = depths(tower.model)
        except ValueError as error:
            raise ConfigError(f"optim.layer_decay: value {decay}; allowed: 1, since {path}: {error}") from None
        factors |= {p: decay ** (last - found[name]) for name, p in tower.model.named_parameters()}
    if decay < 1 and not factors:
        raise ConfigError(f"optim.layer_decay: value {decay}; allowed: 1, since the objective has no backbone")
    return factors


def _hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """What Muon orthogonalises; embeddings, convolutions, norms and biases go to its AdamW half."""
    embeddings = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    every = {p for p in module.parameters() if len(getattr(p, "ds_shape", p.shape)) == 2}
    return every - embeddings


def _refuse_idle(asked: Sequence[Asked], found: dict[nn.Parameter, Treatment], config: OptimConfig) -> None:
    """Settings that would be ignored."""
    for number, each in enumerate(asked):
        mine = [treatment for treatment in found.values() if treatment.role == number]
        if not mine:
            continue
        group, of = each.group, f"of pattern {each.group.pattern!r}"
        adam = config.name not in WITHOUT_BETAS and not all(treatment.muon for treatment in mine)
        if group.betas is not None and not adam:
            half = "" if config.name in WITHOUT_BETAS else ", which takes all of its parameters"
            raise ConfigError(f"{each.field}.betas: value {group.betas} {of} has no effect with {config.name}{half}")
        if group.weight_decay and not any(treatment.decayed for treatment in mine):
            raise ConfigError(
                f"{each.field}.weight_decay: value {group.weight_decay} {of} has no effect: norms, biases and what "
                f"optim.no_decay names are not decayed"
            )
        for rate in _rates(config, mine):
            product = rate * (config.weight_decay if group.weight_decay is None else group.weight_decay)
            if config.name in ("adamw", "muon") and product >= 1 and any(t.decayed for t in mine):
                raise ConfigError(
                    f"{each.field}.lr: value {group.lr} {of}: rate × weight decay is {product:g}, each step would turn "
                    f"the weights around; allowed: a product < 1"
                )


def _rates(config: OptimConfig, mine: list[Treatment]) -> Iterator[float]:
    for treatment in mine:
        yield base_rate(config, treatment) * treatment.factor


def base_rate(config: OptimConfig, treatment: Treatment) -> float:
    """The recipe's rate for a parameter, before factors."""
    return config.lr if config.name != "muon" or treatment.muon else config.adam_lr or config.lr


def check_groups(module: nn.Module, recipe: Recipe) -> dict[nn.Parameter, Treatment]:
    """`treatments`, refused where a group asks for what its optimizer cannot do at this ZeRO stage."""
    found = treatments(module, recipe.optim)
    asked = asked_groups(module, recipe.optim)
    for number in sorted({t.role for t in found.values() if t.muon and t.role != REST}):
        clip = asked[number].group.clip
        if clip and recipe.zero.stage in (1, 2):
            raise ConfigError(
                f"{asked[number].field}.clip: value {clip} of pattern {asked[number].group.pattern!r}; allowed: 0 for "
                f"matrices under muon at zero.stage {recipe.zero.stage} (their gradient is orthogonalised before it "
                f"could be clipped), or zero.stage=0 or 3"
            )
    return found
