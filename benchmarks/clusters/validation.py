"""Cases that were not fitted, predicted and then measured here.

Fitted: a recipe on 1 rank at two micro-batches, collectives on 2 ranks at some sizes, a checkpoint. Predicted: another
micro-batch, 2 and 4 ranks (more than cores: they share them), collectives of other sizes and on 4 ranks, the
checkpoint of another network, and 2 ranks in network namespaces whose link is limited by `tc`. What a step sends is
compared in bytes, which are counted on paper. The fastest of a case's steps stand for it on both sides: a machine that
others use makes some slower, none faster. Stragglers are left out for the same reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union
from clusters import measured
from clusters.law import Cluster, Collective, seconds_of
from clusters.paper import OnShapes, on_paper
from clusters.predict import Settings, work_of
from clusters.rank import Asked
from clusters.step import Work, parts_of, save_seconds, zero_traffic

DEMO = str(Path(__file__).parents[2] / "launch" / "recipes" / "demo.yaml")
FITTED, OTHER = [1 << 14, 1 << 20, 8 << 20], [1 << 17, 3 << 20]
MICROS, HELD_OUT = [4, 12], 8
LIMIT = 200  # Mbit/s
Case = tuple[str, float, float]


def validate(steps: int) -> int:
    """Prints a line a case. Exit status 0: what error was seen is a result."""
    recipe = load_recipe(DEMO, [], recipe_model(config_union(), evaluation_union()))
    shapes = on_paper(recipe, gpus=False)
    asked = Asked(DEMO, "", [], MICROS, steps, [])
    alone = measured.launch(asked, 1, 1)
    pair = measured.launch(replace(asked, micros=[HELD_OUT], sizes=FITTED, checkpoint=False), 2, 1)
    fit, link = replace(measured.fit_recipe(alone, min), spread=0.0), measured.fit_link([pair])
    here = measured.this_machine(measured.described([]), link, fit.save)
    print(f"fitted on {here.cores} cores: pass {1e3 * fit.fixed:.1f} ms + {1e3 * fit.each:.2f} ms a sample, update "
          f"{1e3 * fit.update:.1f} ms; {1e6 * link[0]:.0f} us a hop, {link[1] / 1e6:.0f} MB/s; "
          f"checkpoint {fit.save / 1e6:.0f} MB/s")  # fmt: skip
    print(f"{'held out':58}{'predicted':>12}{'measured':>12}{'error':>8}")
    single = measured.launch(replace(asked, micros=[HELD_OUT], checkpoint=False), 1, 1)
    show(work_of_threads(alone, single))
    show(steps_of([single, pair], shapes, here, fit))
    work = work_of(recipe, shapes, here, 2, HELD_OUT, 1, Settings(workers=1), fit)
    show(sent_of(pair, shapes, work))
    show(links_of(measured.launch(replace(asked, micros=[4], sizes=OTHER, checkpoint=False), 2, 1), here))
    crowd = measured.launch(replace(asked, micros=[4], sizes=OTHER, checkpoint=False), 4, 1)
    show(steps_of([crowd], shapes, here, fit))
    show(links_of(crowd, here))
    show(checkpoint_of(asked, here))
    with namespaces(LIMIT) as (before, address, why):
        if why:
            print(f"2 ranks over a link of {LIMIT} Mbit/s: not tried, {why}")
            return 0
        env = {"GLOO_SOCKET_IFNAME": "eth0"}
        far = measured.launch(replace(asked, micros=[4], sizes=OTHER, checkpoint=False), 2, 1, before, address, env)
        slow = replace(here, per_node=1, cores=0, outer=min(here.inner, LIMIT / 8 * 1e6))
        show(links_of(far, slow, f" at {LIMIT} Mbit/s"))
        show(steps_of([far], shapes, slow, fit, f" at {LIMIT} Mbit/s"))
    return 0


def show(cases: list[Case]) -> None:
    for what, said, true in cases:
        print(f"{what:58}{said:>12.4g}{true:>12.4g}{100 * (said / true - 1):>+7.0f}%", flush=True)


def work_of_threads(fitted: measured.Run, held_out: measured.Run) -> list[Case]:
    """Milliseconds of the processor in a step of one rank, which others on the machine hardly change."""
    known = {int(micro): min(phases["cpu"]) for micro, phases in fitted["found"]["steps"].items()}
    fixed, each = measured.nonnegative([[1.0, micro] for micro in known], list(known.values()))
    return [(f"processor time of a step of {micro} samples on 1 rank, ms", 1e3 * (fixed + each * int(micro)),
             1e3 * min(phases["cpu"])) for micro, phases in held_out["found"]["steps"].items()]  # fmt: skip


def steps_of(runs: list[measured.Run], shapes: OnShapes, cluster: Cluster, fit: measured.Fitted,
             beside: str = "") -> list[Case]:  # fmt: skip
    """Milliseconds of steps; data, which the measured steps do not wait for, and checkpoints left out."""
    found = []
    recipe = load_recipe(DEMO, [], recipe_model(config_union(), evaluation_union()))
    for run in runs:
        world = run["found"]["world"]
        for micro, phases in run["found"]["steps"].items():
            work = work_of(recipe, shapes, cluster, world, int(micro), 1, Settings(workers=1), fit)
            parts = parts_of(work, cluster, world)
            said = parts.total - parts.data - parts.checkpoint
            found.append((f"step of {micro} samples on {world} ranks{beside}, ms", 1e3 * said,
                          1e3 * min(phases["total"])))  # fmt: skip
    return found


def sent_of(run: measured.Run, shapes: OnShapes, work: Work) -> list[Case]:
    """MB of the collectives of a step, by kind: ZeRO's and the objective's together."""
    (micro, calls), world = next(iter(run["found"]["sent"].items())), run["found"]["world"]
    true: Counter[str] = Counter()
    for kind, size, count in calls:
        true[kind] += size * count
    said: Counter[str] = Counter()
    for each in zero_traffic(work, world):
        said[each.kind] += each.bytes * each.count
    for (_, kind, _), size in shapes.at(world, int(micro)).collectives.items():
        said[kind] += size
    beside = f"in a step of {micro} samples on {world} ranks, MB"
    return [(f"{kind} {beside}", said[kind] / 1e6, true[kind] / 1e6) for kind in true]


def links_of(run: measured.Run, cluster: Cluster, beside: str = "") -> list[Case]:
    """Milliseconds of collectives."""
    world = run["found"]["world"]
    return [
        (f"{kind} of {size / 1e6:.2f} MB on {world} ranks{beside}, ms",
         1e3 * seconds_of(Collective(kind, size), cluster, world), 1e3 * seconds)
        for kind, points in run["found"]["collectives"].items() for size, seconds in points
    ]  # fmt: skip


def checkpoint_of(asked: Asked, cluster: Cluster) -> list[Case]:
    """Seconds and MB of the checkpoint of another network: wider."""
    wider = ["backbones.image.config.hidden_sizes=[64, 128, 256, 512]"]
    recipe = load_recipe(DEMO, wider, recipe_model(config_union(), evaluation_union()))
    shapes = on_paper(recipe, gpus=False)
    run = measured.launch(replace(asked, overrides=wider, micros=[4], steps=1), 1, 1)
    saved = run["found"]["checkpoint"]
    work = work_of(recipe, shapes, cluster, 1, 4, 1, Settings(workers=1), measured.fit_recipe(run))
    return [("checkpoint of a wider network, MB", (shapes.whole + shapes.sliced) / 1e6, saved["bytes"] / 1e6),
            ("checkpoint of a wider network, s", save_seconds(work, cluster, 1), saved["seconds"])]  # fmt: skip


@contextlib.contextmanager
def namespaces(limit: int) -> Iterator[tuple[list[list[str]], str, str]]:
    """Two network namespaces with a link of `limit` Mbit/s: words before the commands of two ranks, the address of the
    first, and why there are none where this machine does not permit them."""
    names = [f"bigssl{os.getpid()}{side}" for side in "ab"]
    lacking = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    if lacking or os.geteuid():
        yield [], "", f"{' and '.join(lacking)} not installed" if lacking else "only root makes network namespaces"
        return
    why = ""
    try:
        commands = [f"ip netns add {name}" for name in names]
        commands.append(f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}")
        for number, name in enumerate(names, 1):
            inside = f"ip netns exec {name}"
            commands += [f"{inside} ip link set lo up", f"{inside} ip link set eth0 up",
                         f"{inside} ip addr add 10.77.0.{number}/24 dev eth0",
                         f"{inside} tc qdisc add dev eth0 root tbf rate {limit}mbit burst 64kb latency 1s"]  # fmt: skip
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                why = f"{command!r}: {done.stderr.strip()}"
                break
        yield [["ip", "netns", "exec", name] for name in names], "10.77.0.1", why
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
