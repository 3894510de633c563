"""A rank of a run: `bigssl train launch/recipes/demo.yaml [a.b=c ...]` starts it, or on a cluster
`deepspeed bigssl/train.py --config launch/recipes/demo.yaml [a.b=c ...]`.

The same command again resumes. Exit codes: `bigssl/exits.py`.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, NamedTuple

# Run as a script, Python puts this folder first on the path, where `data` or `config` would shadow other packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader processes are forked
# Compute threads share the cores with loader processes: spinning at each barrier for one that waits for its turn made
# a step of the demo a third longer on 2 cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bigssl.engine import stopping  # noqa: E402

ATTENTION: stopping.Attention | None = None
if __name__ == "__main__":  # before the seconds that the other imports take
    gc.disable()  # a fifth of them were spent in looking for garbage among modules
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # the launcher numbers ranks by it, which shows GPUs that were hidden
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    stopping.keep_speaking()
    ATTENTION = stopping.Attention()
    ATTENTION.start()

import torch  # noqa: E402
from cyclopts import Parameter  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from bigssl import distributed, exits  # noqa: E402
from bigssl.cli.app import AllowPartial, Change, called, fields_of, new_app  # noqa: E402
from bigssl.config.errors import ConfigError, say  # noqa: E402
from bigssl.config.recipe import Recipe, allowing_partial, dump_recipe, load_recipe, recipe_model  # noqa: E402
from bigssl.data.errors import DataError, display, redact  # noqa: E402
from bigssl.engine import guards, loop, zero  # noqa: E402
from bigssl.engine.checkpoint import CheckpointError  # noqa: E402
from bigssl.engine.clock import Clock  # noqa: E402
from bigssl.engine.guards import NotSaved  # noqa: E402
from bigssl.engine.held import let_go, refuse_held  # noqa: E402
from bigssl.engine.meeting import network, watch  # noqa: E402
from bigssl.engine.meeting.watch import Watch  # noqa: E402
from bigssl.engine.plan import preflight  # noqa: E402
from bigssl.engine.resume import settled  # noqa: E402
from bigssl.nets.heads.base import Head  # noqa: E402
from bigssl.objectives.base import config_union, exported_heads, exported_networks  # noqa: E402
from bigssl.objectives.exported import rest_of_objective  # noqa: E402
from bigssl.report.html import write_report  # noqa: E402
from bigssl.transfer.discovery import evaluation_union  # noqa: E402
from bigssl.transfer.inputs import input_of  # noqa: E402
from bigssl.transfer.leaving.export import ExportError, export_run  # noqa: E402
from bigssl.transfer.probe import LiveProbe  # noqa: E402
from bigssl.transfer.scorecard import format_table, score  # noqa: E402
from bigssl.transfer.subjects import Live, Subject, Tensors  # noqa: E402
from bigssl.transfer.team import AgreedError, Team  # noqa: E402


class Options(NamedTuple):
    """The command line."""

    config: str
    overrides: list[str]
    print_config: bool
    change: list[str]
    allow_partial: bool


def main(arguments: list[str] | None = None) -> int:
    """Entry of the driver; returns the exit code."""
    app = new_app("deepspeed bigssl/train.py", "Pretrain without labels; resumes.")
    app.default(_options)
    disable_progress_bar()  # ours is the bar of the run
    rank = os.environ.get("RANK", "0")
    first = rank == "0"
    try:
        options = called(app, arguments)
        if options is None:  # --help
            return exits.DONE
        if not options.print_config:
            preflight.check_port()
            for name in (network.MEETING, watch.SILENCE):
                network.seconds_of(name, 0)
        recipe = load_recipe(options.config, options.overrides, recipe_model(config_union(), evaluation_union()))
        recipe = allowing_partial(recipe) if options.allow_partial else recipe
        if not options.print_config:
            refuse_held(recipe.folder)
        plan = preflight.plan(recipe, preflight.announced_world(), options.change)
    except (ConfigError, DataError) as error:
        # What is wrong with the files of one machine is not seen on the first; on a machine, one rank speaks.
        if first or os.environ.get("LOCAL_RANK", "0") == "0":
            say(error, "" if first else f"rank {rank}: ")
        return exits.REFUSED
    if options.print_config:
        resolved = settled(recipe, plan.backbones, accum=plan.accum, bf16=plan.bf16)
        print(redact(dump_recipe(resolved)) if first else "", end="")
        return exits.DONE
    try:
        return _run(recipe, plan)
    except RuntimeError as error:
        if not (how := distributed.left_alone(error)):
            raise
        time.sleep(watch.LEFT_ALONE)
        if Watch.current is not None:
            Watch.current.left_alone(how)
        print(f"bigssl: rank {rank}: ended, since another rank has ({how})", file=sys.stderr, flush=True)
        os._exit(exits.FAILED)
    finally:
        let_go()


def _options(
    *overrides: str, config: str, print_config: bool = False, change: Change = "",
    allow_partial: AllowPartial = False,
    local_rank: Annotated[int | None, Parameter(name="--local_rank", show=False)] = None,  # the launcher passes it
) -> Options:  # fmt: skip
    """
    Args:
        overrides: recipe fields to change, a.b=c, e.g. zero.stage=2
        config: recipe (YAML), for example launch/recipes/demo.yaml
        print_config: print the resolved recipe and stop
    """
    return Options(config, list(overrides), print_config, fields_of(change), allow_partial)


def _run(recipe: Recipe, plan: preflight.Plan) -> int:
    try:
        device = zero.start()
        watching = Watch()
    except distributed.NoMeeting as error:
        say(error)
        return exits.FAILED
    try:
        # now: hours later nobody is there to mend a network
        team = Team() if recipe.evaluate is not None or recipe.probe is not None else None
        outcome = loop.train(recipe, plan, device, live_probe(recipe, plan, device, team))
        if not outcome.preempted:
            if ATTENTION is not None:
                ATTENTION.heed()
            Clock.now = "the export"
            _export(recipe, plan)
    except (guards.Agreed, AgreedError) as error:
        if distributed.is_main():
            say(error)
        watching.end()  # waits: before any rank ends, which would have the launcher end rank 0
        zero.stop()
        return exits.FAILED
    except (CheckpointError, DataError, distributed.NoMeeting) as error:
        print(f"bigssl: rank {distributed.rank()}: {error}", file=sys.stderr, flush=True)
        os._exit(exits.FAILED)  # leaving the group would wait for ranks that wait for this one; the launcher ends them
    distributed.barrier()
    Clock.now = "the evaluation"
    code = _stopped(outcome) if outcome.preempted else _evaluate(recipe, device, team)
    watching.end()
    zero.stop()
    return code


def _stopped(outcome: loop.Outcome) -> int:
    if distributed.is_main():
        print(f"stopped by {outcome.preempted} after step {outcome.step}; the same command goes on from there")
    return exits.STOPPED


def live_probe(recipe: Recipe, plan: preflight.Plan, device: torch.device, team: Team | None) -> LiveProbe | None:
    """What `recipe.probe` asks for, over the networks that are trained. Collective."""
    if recipe.probe is None or team is None:
        return None
    live = Live(subjects(plan), lambda: _heads(plan), zero.gathered)
    return LiveProbe(recipe.probe.sections, live, team=team, seed=recipe.seed, device=device,
                     folder=recipe.folder)  # fmt: skip


def subjects(plan: preflight.Plan) -> list[Subject]:
    """The networks that are exported, and may be evaluated, under their names. Collective."""
    towers = plan.backbones
    with _own_weights(plan):  # a task makes its heads in the same breath
        networks = exported_networks(plan.objective, towers)
    return [
        Subject(name, {"trained": network.model}, input_of(towers[network.backbone]), towers[network.backbone].dim)
        for name, network in networks.items()
    ]


def _own_weights(plan: preflight.Plan) -> AbstractContextManager[None]:
    """Within it, the objective's weights outside of the backbones are whole, also at ZeRO-3."""
    backbone = {id(p) for tower in plan.backbones.values() for p in tower.parameters()}
    return zero.gathered(p for p in plan.objective.parameters() if id(p) not in backbone)


def _heads(plan: preflight.Plan) -> dict[str, Head]:
    """The heads of the objective, with whole tensors on the CPU. Collective."""
    with _own_weights(plan):
        return {
            name: head._replace(tensors={key: value.detach().cpu().clone() for key, value in head.tensors.items()})
            for name, head in exported_heads(plan.objective).items()
        }


def _export(recipe: Recipe, plan: preflight.Plan) -> None:
    """Collective: gathers the weights, rank 0 writes them.

    Raises:
        NotSaved: on every rank, where they cannot be written.
    """
    networks = subjects(plan)
    states = {network.name: zero.full_state(network.models["trained"]) for network in networks}
    heads = _heads(plan)
    with _own_weights(plan):  # whole on every rank; one keeps them
        rest = _rest(recipe, plan) if distributed.is_main() else None
    problem = ""
    if rest is not None:
        try:
            print(f"exported {', '.join(states)} to {_write_export(recipe, networks, states, heads, rest)}", flush=True)
        except (OSError, SafetensorError, ExportError) as error:
            problem = str(getattr(error, "strerror", None) or error)
    if problem := distributed.from_main(problem):
        raise NotSaved(
            f"trained, not exported to {recipe.folder}: {problem}; after mending it, the same command goes on there"
        )


def _rest(recipe: Recipe, plan: preflight.Plan) -> tuple[str, Tensors, dict[str, str]]:
    return rest_of_objective(plan.objective, recipe.objective, plan.backbones, recipe.steps)


def _write_export(
    recipe: Recipe, networks: list[Subject], states: dict[str, dict[str, Tensor]], heads: dict[str, Head],
    rest: tuple[str, Tensors, dict[str, str]],
) -> Path:  # fmt: skip
    meta = {
        "objective": recipe.objective.name,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "data": {name: ", ".join(map(display, source.urls.values())) for name, source in recipe.data.sources.items()},
    }
    models = {network.name: network.models["trained"] for network in networks}
    inputs = {network.name: network.takes for network in networks}
    return export_run(recipe.folder, models, inputs, heads, meta, states=states, rest=rest)


def _evaluate(recipe: Recipe, device: torch.device, team: Team | None) -> int:
    """Collective: all ranks score, rank 0 tells."""
    try:
        card = None
        if recipe.evaluate is not None:
            made = f"Made with {recipe.folder}/config.yaml, of the export after {recipe.steps} steps."
            card = score(recipe.folder, recipe.evaluate, seed=recipe.seed, device=device, team=team, made=made,
                         steps=recipe.steps)  # fmt: skip
        if distributed.is_main():
            if card is not None:
                print(format_table(card), flush=True)
            print(f"report: {write_report(recipe.folder)}", flush=True)
            for name, why in card["failed"].items() if card is not None else ():
                print(f"bigssl: trained and exported, not evaluated: evaluate.{name}: {why}; after mending it: bigssl "
                      f"evaluate {recipe.folder}", file=sys.stderr, flush=True)  # fmt: skip
    except (DataError, OSError) as error:
        agreed = isinstance(error, AgreedError) or not distributed.active()
        if distributed.is_main() or not agreed:
            who = "" if agreed else f"rank {distributed.rank()}: "
            again = f"bigssl evaluate {recipe.folder}"
            print(f"bigssl: {who}trained and exported, not evaluated: {error}; after mending it: {again}",
                  file=sys.stderr, flush=True)  # fmt: skip
        if not agreed:
            os._exit(exits.FAILED)  # others may wait for this rank; the launcher ends them
        return exits.FAILED
    return exits.FAILED if card is not None and card["failed"] else exits.DONE


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    code = main()
    gc.freeze()  # Python looks once more when it ends
    sys.exit(code)
