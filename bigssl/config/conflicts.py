"""Values of a recipe that are each allowed, and cannot work together: found before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bigssl.config.optim import WITHOUT_BETAS, OptimConfig

if TYPE_CHECKING:
    from bigssl.config.recipe import Recipe, RemoteConfig


def conflicts(recipe: Recipe) -> list[str]:
    """One line per conflict, naming both fields with their values."""
    found = [*of_schedule(recipe), *_of_optimizer(recipe.optim), *_of_files(recipe)]
    found += _of_remote(recipe.data.remote)
    return found


def of_schedule(recipe: Recipe) -> Iterator[str]:
    """Where the rate would not rise and then fall."""
    optim, steps = recipe.optim, recipe.steps
    warmup = optim.warmup_steps(steps)
    if warmup >= steps:
        yield f"optim.warmup {optim.warmup:g} does not end within steps {steps}"
    elif optim.schedule == "wsd":
        stable = int(round(steps * (1 - optim.decay), 6))
        if warmup > stable:
            yield (
                f"optim.warmup {optim.warmup:g} ends inside the decay of optim.decay {optim.decay}, which begins after "
                f"step {stable} of steps {steps}: the rate would jump; allowed: optim.warmup <= {stable}, or a smaller "
                f"optim.decay"
            )


def _of_optimizer(optim: OptimConfig) -> Iterator[str]:
    used = {
        "betas": optim.name not in WITHOUT_BETAS, "eps": optim.name not in WITHOUT_BETAS,
        "momentum": optim.name in (*WITHOUT_BETAS, "muon"),
        "trust": optim.name == "lars",
        "adam_lr": optim.name == "muon", "decay": optim.schedule == "wsd", "power": optim.schedule == "polynomial",
        "final": optim.schedule != "constant",
    }  # fmt: skip
    for field, applies in used.items():  # one that is ignored would be a silent no
        if not applies and getattr(optim, field) != type(optim).model_fields[field].default:
            yield f"optim: {field} {getattr(optim, field)} has no effect with {optim.name} and {optim.schedule}"
    rates = {"lr": optim.lr} | ({"adam_lr": optim.adam_lr} if optim.adam_lr else {})
    for field, rate in rates.items():
        product = rate * optim.weight_decay
        if optim.name in ("adamw", "muon") and product >= 1:
            yield (
                f"optim.{field} {rate} × optim.weight_decay {optim.weight_decay} is {product:g}: each step would turn "
                f"the weights around; allowed: a product < 1"
            )


def _of_files(recipe: Recipe) -> Iterator[str]:
    every, keep_every = recipe.checkpoint.every, recipe.checkpoint.keep_every
    if keep_every and keep_every % every and every % keep_every:
        yield (
            f"checkpoint.keep_every {keep_every} meets few of the checkpoints of checkpoint.every {every}; allowed: a "
            f"multiple of it, such as {max(1, keep_every // every) * every}"
        )
    data, default = recipe.data, type(recipe.data).model_fields["max_errors"].default
    if data.on_error == "raise" and data.max_errors != default:
        yield f"data.max_errors {data.max_errors} has no effect with data.on_error raise; allowed: on_error skip"


def _of_remote(remote: RemoteConfig) -> Iterator[str]:
    if remote.timeout > remote.deadline:
        yield (
            f"data.remote.timeout {remote.timeout:g} of one attempt is longer than data.remote.deadline "
            f"{remote.deadline:g} of all; allowed: timeout <= deadline"
        )
    if remote.cache is None and remote.cache_gb != type(remote).model_fields["cache_gb"].default:
        yield f"data.remote.cache_gb {remote.cache_gb:g} has no effect without data.remote.cache; add a folder"
