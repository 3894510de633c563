"""`bigssl doctor`: is this machine, or cluster, fit for a run?"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from bigssl import exits
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe

if TYPE_CHECKING:
    from bigssl.doctor.findings import Diagnoses

SECTIONS = ("environment", "data", "kernels", "network", "equivalence")


def doctor(
    *overrides: str, config: Path | None = None, ranks: PositiveInt | None = None, only: str | None = None,
    json: bool = False,
    answer: Annotated[Path | None, Parameter(show=False)] = None,
    local_rank: Annotated[int | None, Parameter(name="--local_rank", show=False)] = None,  # the launcher passes it
) -> int:  # fmt: skip
    """Looks at drivers, packages, limits, disks and ports; at each loss kernel on this device; at clocks and bandwidth
    between ranks; with a recipe, at its data, and whether each of its tasks has the loss and gradient on several ranks
    that it has in one process. Exit status 1 when something would fail, 2 when the recipe cannot be read. On a
    cluster, start bigssl/doctor/rank.py --config R there as you would start bigssl/train.py.

    Args:
        overrides: recipe fields to change, a.b=c
        config: recipe (YAML)
        ranks: processes to start here (default: one per GPU, two without GPUs)
        only: sections, of environment,data,kernels,network,equivalence (default: all)
        json: print one JSON object
    """
    wanted = _sections(only)
    if local_rank is not None and "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = str(local_rank)
    if config is None and overrides:
        raise ConfigError(f"{overrides[0]}: there is no recipe to change; allowed: with --config")
    from bigssl.doctor.findings import FAIL, findings_json, findings_text

    environment = _environment(wanted)
    try:
        from bigssl.cli.doctor.asking import ask, ask_as_rank
        from bigssl.cli.recipes import model

        kind = model()
    except Exception as error:  # whatever a broken installation raises
        return _broken(environment, error, json)
    recipe = None if config is None else load_recipe(config, list(overrides), kind)
    if "RANK" in os.environ:
        found = ask_as_rank(wanted, environment, recipe, kind, answer)
    else:
        _refuse_many_doctors()
        words = [*(("--config", str(config)) if config else ()), *overrides]
        found = ask(wanted, environment, recipe, kind, ranks, words)
    if found is None:  # another rank speaks
        return exits.DONE
    print(findings_json(found) if json else findings_text(found), flush=True)
    code = exits.FAILED if any(each.level == FAIL for each in found) else exits.DONE
    if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():  # ranks have parted
        os._exit(code)  # to leave the group would wait for them
    return code


def _refuse_many_doctors() -> None:
    """Where a scheduler started this many times, each would start ranks of its own."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"):
        if (value := os.environ.get(name) or "1") != "1":
            raise ConfigError(f"{name}: value {value}, but RANK is not set: one of many; allowed: once a machine, or "
                              "as ranks, with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT")  # fmt: skip


def _environment(wanted: list[str]) -> Diagnoses:
    """What is found out before anything is imported that a broken installation breaks. One rank a machine looks."""
    from bigssl.doctor.findings import Diagnoses
    from bigssl.doctor.versions import examine_versions

    here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1"))
    several = int(os.environ.get("WORLD_SIZE", "1")) > here
    found = Diagnoses("environment", socket.gethostname() if several else "")
    if "environment" in wanted and os.environ.get("LOCAL_RANK", "0") == "0":
        examine_versions(found)
    return found


def _broken(environment: Diagnoses, error: Exception, json: bool) -> int:
    """The answer of an installation that cannot be imported: what is known without it."""
    from bigssl.doctor.findings import findings_json, findings_text, first_line
    from bigssl.doctor.machine import examine_machine
    from bigssl.doctor.surroundings import examine_surroundings

    if environment.found:
        examine_machine(environment, None, 1, 0)
        examine_surroundings(environment)
    environment.fail("imports", f"{type(error).__name__}: {first_line(error)}", "mend what is said above first; else "
                     "`python -c 'import bigssl.train'` shows where it is raised")  # fmt: skip
    print(findings_json(environment.found) if json else findings_text(environment.found), flush=True)
    return exits.FAILED


def _sections(only: str | None) -> list[str]:
    if only is None:
        return [*SECTIONS]
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    for name in wanted:
        if name not in SECTIONS:
            raise ConfigError(f"--only: value {name!r}; allowed: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in wanted]
