"""What a step of a recipe is, counted without running it: FLOPs, operators, and what its ranks exchange.

The recipe's own forward and backward run on tensors that have shapes but no numbers, as a rank of a process group that
is only said to exist; every collective that the objective and its BatchNorms call is written down with its bytes. Counts
at a few worlds and micro-batches then give those at any: each is a sum of terms 1, m, W, W m and W m² (m samples a rank,
W ranks), which a test holds against counting.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from bigssl.config.recipe import Recipe
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.engine.plan.activations import OnPaper, everything_sample
from bigssl.engine.plan.memory import checkpoint_bytes, memory, taught_bytes
from bigssl.nets.progress import Progress
from bigssl.nets.weightless import quiet

PLACES = ((2, 4), (2, 8), (16, 4), (16, 8), (16, 12))
"""Ranks and samples a rank with which steps are counted: as few as tell five terms apart."""
SAMPLES = 8  # of a pass whose activations are counted
Term = tuple[str, str, int]
"""Phase (forward or backward), kind and place of a collective among those of its kind and phase."""


class Tally(TorchDispatchMode):
    """FLOPs and operators of what runs within it, by phase, and the collectives of `_c10d_functional`."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "forward"
        self.flops: dict[str, float] = defaultdict(float)
        self.operators: dict[str, int] = defaultdict(int)
        self.sent: dict[str, list[tuple[str, int]]] = {"forward": [], "backward": []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._overloadpacket._qualified_op_name
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops[self.phase] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif name.startswith("_c10d_functional::all_"):
            self.note("all_reduce" if "all_reduce" in name else "all_gather", out)
        if not func.is_view:
            self.operators[self.phase] += 1
        return out

    def note(self, kind: str, *tensors: Tensor) -> None:
        self.sent[self.phase].append((kind, sum(t.numel() * t.element_size() for t in tensors)))


@contextlib.contextmanager
def among(world: int, tally: Tally) -> Iterator[None]:
    """Within it, this process is the first of `world` ranks, whose collectives `tally` notes and which do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    calls: dict[str, Callable[..., None]] = {
        "all_reduce": lambda tensor, *_, **__: tally.note("all_reduce", tensor),
        "broadcast": lambda tensor, *_, **__: tally.note("broadcast", tensor),
        "all_gather": lambda out, *_, **__: tally.note("all_gather", *out),
        "all_gather_into_tensor": lambda out, *_, **__: tally.note("all_gather", out),
        "reduce_scatter_tensor": lambda _out, whole, *_, **__: tally.note("reduce_scatter", whole),
    }
    try:
        with contextlib.ExitStack() as stack:
            for name, call in calls.items():
                stack.enter_context(mock.patch.object(dist, name, call))
            # asked of the other ranks with numbers, which these tensors do not have
            stack.enter_context(mock.patch("bigssl_kernels.agreement.asks", lambda _: False))
            yield
    finally:
        dist.destroy_process_group()


@dataclass
class Counts:
    """Of one forward and backward of `m` samples a rank among `W` ranks; collectives by phase, in order."""

    flops: dict[str, float]
    operators: int
    collectives: dict[Term, float]
    partly: str = ""


def _terms(world: int, micro: int) -> list[float]:
    return [1, micro, world, world * micro, world * micro**2]


@dataclass
class OnShapes:
    """A recipe's step for any world and micro-batch. Sizes in bytes, elements of 4.

    partly: why a count ends before the backward pass (then it is taken as twice the forward), or "". convolution:
    whether most of its FLOPs are convolutions'. modality: of the first backbone. activations: bytes a sample. held: of a
    rank of 8, without activations.
    """

    stage: int
    trained: float
    weights: float
    whole: float
    sliced: float
    teachers: float
    layers: int
    tensors: int
    modality: str
    size: int
    convolution: bool
    activations: float
    held: float
    partly: str
    known: list[tuple[int, int, Counts]] = field(default_factory=list)

    def at(self, world: int, micro: int) -> Counts:
        """What is counted at other places, at this one."""
        if world == 1:  # nobody to talk to
            alone = self.at(2, micro)
            return Counts(alone.flops, alone.operators, {}, alone.partly)
        basis = np.array([_terms(w, m) for w, m, _ in self.known], float)
        scale = np.abs(basis).max(0)

        def fitted(values: list[float]) -> float:
            weights = np.linalg.lstsq(basis / scale, np.array(values, float), rcond=1e-10)[0]
            return float(max(0.0, (np.array(_terms(world, micro)) / scale) @ weights))

        flops = {phase: fitted([c.flops[phase] for *_, c in self.known]) for phase in ("forward", "backward")}
        keys = self.known[0][2].collectives.keys()
        sent = {key: fitted([c.collectives[key] for *_, c in self.known]) for key in keys}
        return Counts(flops, self.known[-1][2].operators, sent, self.partly)


def on_paper(recipe: Recipe) -> OnShapes:
    """Count a recipe. Needs no data; a minute for a large network."""
    paper = OnPaper(recipe)
    objective, towers = paper.objective, paper.towers
    bf16 = recipe.precision in ("bf16", "auto")
    found = [(w, m, _count(paper, recipe, w, m, bf16)) for w, m in PLACES]
    kept = paper.activations({source: SAMPLES for source in objective.sources()}, bf16=bf16)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    taught = taught_bytes(objective)
    total = checkpoint_bytes(objective, recipe)
    weights = 4 * sum(p.numel() for p in objective.parameters()) if recipe.zero.stage < 3 else 0
    whole = total if recipe.zero.stage == 0 else weights + taught
    tower = next(iter(towers.values()))
    blocks = [len(m) for m in objective.modules() if isinstance(m, nn.ModuleList)]
    convolved = sum(isinstance(m, nn.Conv2d) for m in objective.modules())
    return OnShapes(
        stage=recipe.zero.stage, trained=4.0 * trained, weights=4.0 * sum(p.numel() for p in objective.parameters()),
        whole=float(whole), sliced=float(total - whole), teachers=float(taught), layers=max([*blocks, 4]),
        tensors=len(list(objective.parameters())), modality=tower.modality, size=tower.size,
        convolution=convolved > 8, activations=(kept.bytes + kept.batch) / SAMPLES,
        held=float(memory(objective, recipe, stage=recipe.zero.stage, world=8, accum=recipe.batch.accum or 1, bf16=bf16).total),
        partly=found[-1][2].partly, known=found,
    )  # fmt: skip


def _count(paper: OnPaper, recipe: Recipe, world: int, micro: int, bf16: bool) -> Counts:
    objective, rng = paper.objective, np.random.default_rng(0)
    batches = {}
    for source in objective.sources():
        sample = everything_sample(source, paper.towers.values())

        def more(_: Any, use: Callable[[Sample], Any] = lambda s: s, one: Sample = sample) -> Any:
            return use(one)

        made = collate([objective.prepare(sample, rng, more) for _ in range(micro)])
        batches[source] = made | {SEEDS: torch.zeros(micro, dtype=torch.int64)}
    batch, tally, partly = objective.assemble(batches), Tally(), ""
    eager = torch.compiler.set_stance("force_eager")
    for parameter in objective.parameters():
        parameter.grad = None
    with among(world, tally), paper._fake, eager, quiet(), tally:
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = objective(tree_map(_shape, batch), Progress(0, recipe.steps))
            tally.phase = "backward"
            losses.total.backward()
        except Exception as error:  # whatever a loss does with numbers that are not there
            partly = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            tally.flops["backward"] = max(tally.flops["backward"], 2 * tally.flops["forward"])
            tally.operators["backward"] = max(tally.operators["backward"], 2 * tally.operators["forward"])
    for parameter in objective.parameters():
        parameter.grad = None
    sent: dict[Term, float] = {}
    for phase, calls in tally.sent.items():
        places: dict[str, int] = defaultdict(int)
        for kind, size in calls:
            sent[phase, kind, places[kind]] = size
            places[kind] += 1
    pairs = 0.0  # products of rows with gathered rows, in kernels of ours, whose FLOPs torch does not know
    if world > 1 and not partly:
        pairs = sum(size / 4 * micro for (phase, kind, _), size in sent.items()
                    if (phase, kind) == ("forward", "all_gather"))  # fmt: skip
    flops = {"forward": tally.flops["forward"] + 2 * pairs, "backward": tally.flops["backward"] + 4 * pairs}
    return Counts(flops, sum(tally.operators.values()), sent, partly)


def _shape(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

