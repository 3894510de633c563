"""`bigssl doctor`: is this machine, or cluster, fit for a run?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from bigssl import exits
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe

SECTIONS = ("environment", "data", "kernels", "network", "equivalence")


def doctor(
    *overrides: str, config: Path | None = None, ranks: PositiveInt | None = None, only: str = ",".join(SECTIONS),
    json: bool = False,
    answer: Annotated[Path | None, Parameter(show=False)] = None,
    local_rank: Annotated[int | None, Parameter(name="--local_rank", show=False)] = None,  # the launcher passes it
) -> int:  # fmt: skip
    """Looks at drivers, packages, limits, disks and ports; at each loss kernel on this device; at clocks and bandwidth
    between ranks; with a recipe, at its data, and whether each of its tasks has the loss and gradient on several ranks
    that it has in one process. Exit status 1 when something would fail, 2 when the recipe cannot be read. On a
    cluster, start it as ranks: `deepspeed --hostfile H bigssl/doctor/rank.py --config R` (torchrun, srun the same).

    Args:
        overrides: recipe fields to change, a.b=c
        config: recipe (YAML)
        ranks: processes to start here (default: one per GPU, two without GPUs)
        only: sections, of environment,data,kernels,network,equivalence
        json: print one JSON object
    """
    wanted = _sections(only)
    if local_rank is not None and "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = str(local_rank)
    from bigssl.cli.doctor.asking import ask, ask_as_rank
    from bigssl.cli.recipes import model
    from bigssl.doctor.findings import FAIL, findings_json, findings_text

    kind = model()
    recipe = None if config is None else load_recipe(config, list(overrides), kind)
    if config is None and overrides:
        raise ConfigError(f"{overrides[0]}: there is no recipe to change; allowed: with --config")
    if "RANK" in os.environ:
        found = ask_as_rank(wanted, recipe, kind, answer)
    else:
        words = [*(("--config", str(config)) if config else ()), *overrides]
        found = ask(wanted, recipe, kind, ranks, words)
    if found is None:  # another rank speaks
        return exits.DONE
    print(findings_json(found) if json else findings_text(found), flush=True)
    return exits.FAILED if any(each.level == FAIL for each in found) else exits.DONE


def _sections(only: str) -> list[str]:
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    for name in wanted:
        if name not in SECTIONS:
            raise ConfigError(f"--only: value {name!r}; allowed: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in wanted]
