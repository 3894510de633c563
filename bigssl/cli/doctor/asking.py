"""Who is asked what: this process, ranks that it starts on this machine, or ranks that a launcher has started."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

import torch

from bigssl import distributed
from bigssl.cli.doctor.ranks import start_ranks
from bigssl.config.recipe import Recipe
from bigssl.doctor.data import examine_data
from bigssl.doctor.equivalence import Parted, Reference, compare_tasks, local_device, references
from bigssl.doctor.findings import FAIL, Diagnoses, Diagnosis, merged
from bigssl.doctor.kernels import examine_kernels
from bigssl.doctor.machine import examine_machine
from bigssl.doctor.network import examine_network
from bigssl.doctor.surroundings import examine_surroundings
from bigssl.engine import zero
from bigssl.engine.launcher import Launchers
from bigssl.files import write_atomic

TOGETHER = ("network", "equivalence")  # sections that ranks answer together


def ask(
    wanted: list[str], environment: Diagnoses, recipe: Recipe | None, model: type[Recipe], ranks: int | None,
    words: list[str],
) -> list[Diagnosis]:  # fmt: skip
    """All of this machine. environment: what is known of it. words: of the command line, for ranks."""
    cards = torch.cuda.device_count()
    ranks = ranks or cards or 2
    found = _here(wanted, environment, recipe, ranks, ranks, range(cards) if cards else [None])
    together = [name for name in wanted if name in TOGETHER and (recipe is not None or name == "network")]
    if not together:
        return found
    if ranks == 1:
        return _together(together, recipe, model, found)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        problem = start_ranks(ranks, [*words, "--only", ",".join(together), "--answer", str(answer)], Path(folder))
        if answer.exists():
            found += [Diagnosis(**each) for each in json.loads(answer.read_text())]
    if problem:
        found.append(Diagnosis(together[0], "ranks", FAIL, f"{ranks} ranks: {problem}",
                             "what failed here fails in training; `bigssl train R steps=1 --ranks N` shows more"))
    return found


def _here(wanted: list[str], environment: Diagnoses, recipe: Recipe | None, world: int, per_node: int,
          cards: range | list[int | None]) -> list[Diagnosis]:  # fmt: skip
    """What a process finds out by itself: of its machine, and of the devices `cards`."""
    data, kernels = (Diagnoses(name, environment.host) for name in ("data", "kernels"))
    ahead = examine_data(data, recipe, world, per_node) if "data" in wanted and recipe is not None else 0
    if "environment" in wanted:
        examine_machine(environment, recipe, per_node, ahead)
        examine_surroundings(environment)
    for card in cards if "kernels" in wanted else ():
        examine_kernels(kernels, torch.device("cpu") if card is None else torch.device("cuda", card))
    return environment.found + data.found + kernels.found


def _together(wanted: list[str], recipe: Recipe | None, model: type[Recipe], mine: list[Diagnosis]) -> list[Diagnosis]:
    """`mine` of all ranks, and what they answer together; equivalence is known to rank 0. Collective. Where ranks do
    not meet, or part, what this one knows; the process group then is not there, or left as it is."""
    network, equivalence = Diagnoses("network"), Diagnoses("equivalence")
    main, world = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
    device, compared = local_device(), "equivalence" in wanted and recipe is not None
    found: dict[str, Reference] = {}
    if compared and main and recipe is not None:
        found = references(recipe, model, world, device)
    try:
        device = zero.start()
    except distributed.NoMeeting as error:
        network.fail("meeting", str(error), "see `port`, `host name` and `interface` under environment")
        return mine + network.found
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns, on stdout, of the optimizer that is used here
    everyone = [each for of_rank in distributed.gather_objects(mine) for each in of_rank]
    everyone = merged(sorted(everyone, key=lambda each: ("environment", "data", "kernels").index(each.section)))
    try:
        if "network" in wanted:
            examine_network(network, device)
        if compared:
            compare_tasks(equivalence, model, found, device)
    except Parted:
        return everyone + network.found + equivalence.found
    distributed.barrier()
    zero.stop()
    return everyone + network.found + equivalence.found


def ask_as_rank(
    wanted: list[str], environment: Diagnoses, recipe: Recipe | None, model: type[Recipe], answer: Path | None
) -> list[Diagnosis] | None:
    """As one of many ranks: all of its machine (one rank a machine), its device, and what they answer together. Rank 0
    has the findings of all, others None, but where ranks do not meet, or part. answer: where rank 0 leaves them for the
    process that has started it."""
    _end_with_launcher()
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    per_node = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or world)
    device, alone = local_device(), [name for name in wanted if name not in TOGETHER]
    if local:
        alone = [name for name in alone if name == "kernels" and device.type == "cuda"]
    found = _here(alone, environment, recipe, world, per_node, [device.index])
    found = _together([name for name in wanted if name in TOGETHER], recipe, model, found)
    rank = os.environ["RANK"]
    if rank == "0" and answer is not None:
        write_atomic(answer, json.dumps([dataclasses.asdict(each) for each in found]).encode())
    failed = [each for each in found if each.level == FAIL]
    parted = failed and failed[-1].name == "meeting" or torch.distributed.is_initialized()
    return found if parted or (rank == "0" and answer is None) else None


def _end_with_launcher() -> None:
    """A rank outlives its launcher, and would wait for others."""
    launchers = Launchers()

    def watch() -> None:
        while not launchers.gone():
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
