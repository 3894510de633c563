"""What a step of a recipe is, counted without running it: FLOPs, operators, and what its ranks exchange.

The recipe's own forward and backward run on tensors that have shapes but no numbers, as a rank of a process group that
is only said to exist; every collective that the objective and its BatchNorms call is written down with its bytes.

Counts at a few places give those at others, as sums of terms 1, m, W, W m and W m² (m samples a rank, W ranks). A task
may change its ways between (VICReg exchanges rows, and from some number of them on their covariance): the largest place
asked for is counted too, and where that is not what the terms say, each place is counted.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
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
from bigssl.engine.settings import zero_options
from bigssl.nets.progress import Progress
from bigssl.nets.weightless import quiet

NORMS = "norms"
PLACES = ((2, 4), (2, 8), (16, 4), (16, 8), (16, 12))
"""Ranks and samples a rank with which steps are counted: as few as tell five terms apart."""
SAMPLES = 8  # that are really prepared; of a pass whose activations are counted
Term = tuple[str, str, int]
"""Phase (forward or backward; norms: what BatchNorms of GPUs gather), kind and place of a collective among those of its
kind and phase."""


class Tally(TorchDispatchMode):
    """FLOPs and operators of what runs within it, by phase, and the collectives of `_c10d_functional`."""

    def __init__(self, gpus: bool) -> None:
        super().__init__()
        self.gpus = gpus
        self.phase = "forward"
        self.flops: dict[str, float] = defaultdict(float)
        self.operators: dict[str, int] = defaultdict(int)
        self.sent: dict[str, list[tuple[str, int]]] = {"forward": [], "backward": [], NORMS: []}
        self.products = 0.0  # FLOPs of rows with gathered rows, in kernels of ours, which torch cannot count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._overloadpacket._qualified_op_name
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops[self.phase] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif name.startswith("_c10d_functional::all_"):
            self.note("all_reduce" if "all_reduce" in name else "all_gather", out)
            if "all_gather" in name and self.phase == "forward":
                self.products += 2.0 * args[0].shape[0] * out.numel()
        if not func.is_view and not name.startswith("prim::"):  # those ask a tensor for its device
            self.operators[self.phase] += 1
        return out

    def gathered_moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a BatchNorm over GPUs: torch's SyncBatchNorm gathers two numbers a channel, and how many samples there
        are. (Over CPUs, two sums: `bigssl.nets.norm`.)"""
        self.sent[NORMS].append(("all_gather", dist.get_world_size() * 4 * (2 * x.shape[1] + 1)))
        return *torch.batch_norm_update_stats(x, None, None, 0.0), torch.ones(())

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
        "reduce_scatter": lambda _out, parts, *_, **__: tally.note("reduce_scatter", *parts),
        "reduce_scatter_tensor": lambda _out, whole, *_, **__: tally.note("reduce_scatter", whole),
    }
    try:
        with contextlib.ExitStack() as stack:
            for name, call in calls.items():
                stack.enter_context(mock.patch.object(dist, name, call))
            if tally.gpus:
                stack.enter_context(mock.patch("bigssl.nets.norm.global_moments", tally.gathered_moments))
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
    whether it is a network of them. modality: of the first backbone. activations: bytes a sample. held: of a rank of 8,
    without activations. options: of DeepSpeed's `zero_optimization`, by ranks. follows: whether the terms hold.
    """

    stage: int
    trained: float
    weights: float
    whole: float
    sliced: float
    teachers: float
    layers: int
    modality: str
    size: int
    convolution: bool
    activations: float
    held: float
    partly: str
    options: Callable[[int], dict[str, Any]]
    count: Callable[[int, int], Counts]
    known: dict[tuple[int, int], Counts] = field(default_factory=dict)
    follows: bool = True

    def at(self, world: int, micro: int) -> Counts:
        """A pass of `micro` samples a rank: by the terms, or counted where they do not hold."""
        if world == 1:  # nobody to talk to
            alone = self.by_terms(2, micro)
            return Counts(alone.flops, alone.operators, {}, alone.partly)
        if self.follows:
            return self.by_terms(world, micro)
        return self.counted(world, micro)

    def counted(self, world: int, micro: int) -> Counts:
        if (world, micro) not in self.known:
            self.known[world, micro] = self.count(world, micro)
        return self.known[world, micro]

    def examine(self, world: int, micro: int) -> None:
        """Do the terms hold at the largest place?"""
        said, true = self.by_terms(world, micro), self.counted(world, micro)
        pairs = [(sum(said.flops.values()), sum(true.flops.values()))]
        pairs += [(size, true.collectives.get(key, 0.0)) for key, size in said.collectives.items()]
        same = said.collectives.keys() == true.collectives.keys()
        self.follows = same and all(abs(a - b) <= 0.01 * b + 1 for a, b in pairs)

    def by_terms(self, world: int, micro: int) -> Counts:
        points = [(place, self.known[place]) for place in PLACES]
        basis = np.array([_terms(*place) for place, _ in points], float)
        scale = np.abs(basis).max(0)

        def fitted(values: list[float]) -> float:
            weights = np.linalg.lstsq(basis / scale, np.array(values, float), rcond=1e-10)[0]
            return float(max(0.0, (np.array(_terms(world, micro)) / scale) @ weights))

        flops = {phase: fitted([c.flops[phase] for _, c in points]) for phase in ("forward", "backward")}
        sent = {key: fitted([c.collectives[key] for _, c in points]) for key in points[0][1].collectives}
        return Counts(flops, points[-1][1].operators, sent, self.partly)


def on_paper(recipe: Recipe, gpus: bool = True) -> OnShapes:
    """Count a recipe on ranks with GPUs, or on CPUs. Needs no data; a minute for a large network."""
    paper = OnPaper(recipe)
    objective, towers = paper.objective, paper.towers
    bf16 = recipe.precision in ("bf16", "auto")
    count = partial(_count, paper, recipe, bf16, gpus)
    known = {place: count(*place) for place in PLACES}
    kept = paper.activations(dict.fromkeys(objective.sources(), SAMPLES), bf16=bf16)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    taught = taught_bytes(objective)
    total = checkpoint_bytes(objective, recipe)
    weights = 4 * sum(p.numel() for p in objective.parameters()) if recipe.zero.stage < 3 else 0
    whole = total if recipe.zero.stage == 0 else weights + taught
    tower = next(iter(towers.values()))
    blocks = [len(m) for m in objective.modules() if isinstance(m, nn.ModuleList)]
    convolved = sum(isinstance(m, nn.Conv2d) for m in objective.modules())
    held = memory(objective, recipe, stage=recipe.zero.stage, world=8, accum=recipe.batch.accum or 1, bf16=bf16)
    return OnShapes(
        stage=recipe.zero.stage, trained=4.0 * trained, weights=4.0 * sum(p.numel() for p in objective.parameters()),
        whole=float(whole), sliced=float(total - whole), teachers=float(taught), layers=max([*blocks, 4]),
        modality=tower.modality, size=tower.size,
        convolution=convolved > 8, activations=(kept.bytes + kept.batch) / SAMPLES,
        held=float(held.total),
        partly=known[PLACES[-1]].partly, options=partial(_options, objective, recipe), count=count, known=known,
    )  # fmt: skip


def _options(objective: nn.Module, recipe: Recipe, world: int) -> dict[str, Any]:
    """Of ZeRO among `world` ranks: what the recipe leaves open may follow from their number."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # after bigssl.engine.zero has told it of the device

    with mock.patch("bigssl.distributed.world", lambda: world):
        return DeepSpeedZeroConfig(**zero_options(recipe, recipe.zero.stage, objective)).model_dump()


def _count(paper: OnPaper, recipe: Recipe, bf16: bool, gpus: bool, world: int, micro: int) -> Counts:
    objective, rng = paper.objective, np.random.default_rng(0)
    batches = {}
    for source in objective.sources():
        sample = everything_sample(source, paper.towers.values())

        def more(_: Any, use: Callable[[Sample], Any] = lambda s: s, one: Sample = sample) -> Any:
            return use(one)

        some = [objective.prepare(sample, rng, more) for _ in range(min(micro, SAMPLES))]
        made = collate([some[n % len(some)] for n in range(micro)])
        batches[source] = made | {SEEDS: torch.zeros(micro, dtype=torch.int64)}
    batch, tally, partly = objective.assemble(batches), Tally(gpus), ""
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
    products = 0.0 if partly else tally.products
    flops = {"forward": tally.flops["forward"] + products, "backward": tally.flops["backward"] + 2 * products}
    return Counts(flops, sum(tally.operators.values()), sent, partly)


def _shape(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

