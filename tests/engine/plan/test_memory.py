"""The table of `bigssl plan` against the tensors that DeepSpeed and autograd really hold."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigssl import distributed
from bigssl.data.loading.loader import make_loader
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import memory, preflight
from bigssl.engine.plan.activations import OnPaper
from bigssl.engine.teaching import teach
from bigssl.nets.ema import Ema
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective
from bigssl.objectives.mlm import Mlm

AT = Progress(0, 100)

OPTIONS = {"reduce_bucket_size": 30_000, "stage3_param_persistence_threshold": 200}
CASES = [
    (0, "adamw", 1), (0, "lars", 2), (1, "adamw", 1), (1, "lamb", 1), (1, "adamw", 2), (2, "adamw", 2), (1, "sgd", 2),
    (2, "lars", 1), (3, "adamw", 1), (3, "lamb", 2),
]  # fmt: skip


class Layers(Objective):
    """Uneven layers, one of them frozen, and a teacher of some."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in ((7, 301), (301, 53), (53, 499), (499, 3))))
        self.frozen = nn.Linear(3, 500).requires_grad_(False)
        self.slow = Ema(self.layers[:2], 0.5)

    def teachers(self) -> dict[str, Ema]:
        return {"slow": self.slow}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        total: Tensor = self.frozen(self.layers(x)).square().mean()
        return total


def live_bytes() -> int:
    """Distinct storages that this process can reach, but for those of objects frozen in the garbage collector.

    The least of three looks: a thread of gloo lets go of a tensor some time after it was reduced.
    """
    looks = []
    for _ in range(3):
        time.sleep(0.03)
        looks.append(_reachable())
    return min(looks)


def _reachable() -> int:
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    storages = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def held(recipes: list[Any], accum: list[int]) -> list[tuple[int, int, int]]:
    """For each recipe: bytes at the end of a step's backward passes, after the step, and before it was cut."""
    zero.start()
    gc.freeze()  # the modules imported so far: walking them takes seconds
    kept, found = [], []
    for recipe, passes in zip(recipes, accum, strict=True):
        before = live_bytes()
        torch.manual_seed(0)
        module = Layers()
        whole = live_bytes() - before
        optimizer = build_optimizer(module, recipe.optim)
        engine = zero.Engine(module, optimizer, recipe, micro=2, accum=passes, bf16=False)
        for _ in range(2):  # the first step makes the optimizer's states
            for micro in range(passes):
                engine.backward(engine(torch.ones(2, 7)))
                most = max(most if micro else 0, live_bytes() - before)
                engine.step()
            teach(module.teachers(), AT)
        found.append((most, live_bytes() - before, whole))
        kept.append(engine)
        gc.freeze()
    zero.stop()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2])
def test_deepspeed_holds_what_the_plan_says(world: int, ranks: Any, recipe: Any) -> None:
    default = {} if world == 1 else {"stage3_param_persistence_threshold": 200}  # small layers that teach are cut again
    cases = [(*case, OPTIONS if case[0] else {}) for case in CASES]
    cases += [(*case, default) for case in ((1, "adamw", 2), (2, "lars", 2), (3, "adamw", 1))]
    recipes = [
        recipe(zero={"stage": stage, "options": options}, optim={"name": name, "lr": 0.01})
        for stage, name, _, options in cases
    ]
    accums = [accum for _, _, accum, _ in cases]
    measured = ranks(held, world, recipes, accums)
    for number, (case, used) in enumerate(zip(cases, recipes, strict=True)):
        planned = memory.memory(Layers(), used, stage=case[0], world=world, accum=case[2], bf16=False)
        parts = planned.device
        assert max(rank[number][2] for rank in measured) == pytest.approx(planned.preparation, rel=0.01), case
        backward = max(rank[number][0] for rank in measured)
        after = max(rank[number][1] for rank in measured)
        states = parts["parameters"] + parts["fp32 master copies"] + parts["optimizer states"]
        states += parts["teachers"]
        size = case[3].get("reduce_bucket_size", 46_860)  # all that is trained
        always = 4 * size + parts["gradients"] if case[0] == 3 else 0
        assert after == pytest.approx(states + always, rel=0.02), case
        between = case[0] in (1, 2) and case[2] > 1  # passes: both buckets may live on
        bucket = 2 * 4 * size if between else 0
        least = states + (always or parts["gradients"])
        assert 0.98 * least < backward < 1.02 * (least + bucket), case


def test_muon_keeps_one_number_for_matrices_and_two_for_the_rest(recipe: Any) -> None:
    """By hand: 7·301 + 301·53 + 53·499 + 499·3 elements in matrices, 856 in biases, 2000 frozen."""
    used = recipe(optim={"name": "muon", "lr": 0.01, "clip": 0.0}, zero={"stage": 1})
    matrices, biases, frozen = 46_004, 856, 2_000
    one = memory.memory(Layers(), used, stage=1, world=1, accum=1, bf16=True).device
    assert one["parameters"] == 4 * (matrices + biases + frozen)
    assert one["optimizer states"] == 4 * (matrices + 2 * biases)
    assert one["bf16 copies"] == 2 * (matrices + 1_500)
    assert one["communication"] == 2 * 4 * (matrices + biases)
    four = memory.memory(Layers(), used, stage=1, world=4, accum=1, bf16=False).device
    assert four["optimizer states"] == 4 * (matrices // 4 + 2 * biases // 4) and four["bf16 copies"] == 0


def test_before_the_first_step_a_network_is_whole_or_in_slices(recipe: Any) -> None:
    """Weights and buffers of 4 bytes, BatchNorm's count of 8. At stage 3 of many ranks, most at a time is one layer."""
    head = nn.Sequential(nn.Linear(1000, 999), nn.BatchNorm1d(999))
    weights, buffers = 4 * (1001 * 999 + 2 * 999), 4 * 2 * 999 + 8
    used = recipe(zero={"stage": 3, "options": OPTIONS})
    for stage in (0, 1, 2):
        found = memory.memory(head, used, stage=stage, world=64, accum=1, bf16=False)
        assert found.construction == found.preparation == weights + buffers
    found = memory.memory(head, used, stage=3, world=64, accum=1, bf16=False)
    slices = 4 * (-(-999_000 // 64) + 3 * -(-999 // 64))
    assert found.construction == buffers + slices + 4 * 999_000 and found.preparation == weights + buffers
    step = sum(found.device.values()) - found.device["communication"]
    assert step < 0.1 * found.construction and found.total == max(sum(found.device.values()), found.construction)


def test_backbones_are_made_layer_by_layer_on_the_host_too(recipe: Any, joint: dict[str, Any]) -> None:
    """By hand: BERT's embeddings are the layer that is largest. Rank 0 reads a folder whole."""
    used = recipe(**joint, zero={"stage": 3})
    objective = OnPaper(used).objective
    everything = sum(t.nbytes for t in (*objective.parameters(), *objective.buffers()))
    backbones = sum(p.nbytes for tower in (objective.parts.views.backbone, objective.parts.words.backbone)
                    for p in tower.parameters())  # fmt: skip
    layer = 4 * (8192 + 512 + 2 + 2) * 16
    assert memory.preparation(objective, 3, loads=False) == everything - backbones + layer
    assert memory.preparation(objective, 3, loads=True) == memory.preparation(objective, 2, loads=False) == everything


def test_offloading_moves_the_optimizer_to_the_host(recipe: Any) -> None:
    used = recipe(zero={"stage": 2, "options": {"offload_optimizer": {"device": "cpu"}}})
    found = memory.memory(Layers(), used, stage=2, world=2, accum=1, bf16=False)
    assert found.device["optimizer states"] == 0 == found.device["fp32 master copies"]
    assert found.host == {"fp32 master copies": 4 * 46_860 // 2, "optimizer states": 4 * 46_860}


def test_a_network_that_is_too_large_whole_is_advised_to_be_cut(recipe: Any) -> None:
    """Where slices fit, which on many ranks is so from a billion parameters on."""
    held = {stage: memory.Memory({"activations (estimate)": 5}, {}, 100 if stage < 3 else 10, 0) for stage in range(4)}
    said = memory.too_much(held, Layers(), recipe(zero={"stage": 2}), {"emoji": 8}, 1, 50)
    assert said.startswith("backbones: ") and "smallest change: zero.stage=3 or a larger device" in said


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 3])
def test_checkpoints_are_as_large_as_planned(stage: int, ranks: Any, recipe: Any, train: Any, tmp_path: Path) -> None:
    wide = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "layer_type": "basic"}
    changes = {"backbones": {"image": {"type": "resnet", "size": 16, "config": wide}}, "zero": {"stage": stage}}
    used = recipe(tmp_path / "run", steps=1, optim={"lr": 0.01}, **changes)
    ranks(train, 2, used)
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    planned = memory.checkpoint_bytes(preflight.plan(used, 1).objective, used)
    assert written == pytest.approx(planned, rel=0.06)


def saved_bytes(objective: nn.Module, batch: Any, bf16: bool) -> int:
    """What autograd really keeps in a forward pass, without parameters and their bf16 copies."""
    kept: dict[int, Tensor] = {}
    shapes = {tuple(weight.shape) for weight in memory.cast_weights(objective)}

    def keep(tensor: Tensor) -> Tensor:
        shape = tuple(tensor.shape)
        if tensor.dtype != torch.bfloat16 or not shapes & {shape, shape[::-1]}:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", enabled=bf16):
        loss = objective(batch, AT).total
    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    assert loss.isfinite()
    return sum(t.untyped_storage().nbytes() for handle, t in kept.items() if handle not in weights)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_those_of_a_real_pass(bf16: bool, recipe: Any) -> None:
    used = recipe()
    plan = preflight.plan(used, 1)
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=0, rank=distributed.rank(),
        world=1, accum=1, workers=0, start_step=0, stop_step=1, device_pin=False,
    )  # fmt: skip
    batch = next(iter(loader)).data
    estimate = OnPaper(used).activations({"emoji": 8}, bf16=bf16)
    assert estimate.bytes == pytest.approx(saved_bytes(plan.objective, batch, bf16), rel=0.01)
    assert estimate.batch == sum(tensor.nbytes for tensor in batch.values())
    assert not estimate.partly and not estimate.unknown


def test_activations_grow_with_the_micro_batch(recipe: Any, joint: dict[str, Any]) -> None:
    networks = OnPaper(recipe(**joint))
    small, large, huge = (networks.activations({"emoji": n, "text": n}, bf16=True) for n in (8, 32, 64))
    assert small.bytes < large.bytes < 4.5 * small.bytes
    assert (huge.bytes, huge.batch) == (2 * large.bytes, 2 * large.batch)
    assert not small.partly and not small.unknown


def test_packed_texts_are_counted(recipe: Any, joint: dict[str, Any]) -> None:
    objective = {"name": "mlm", "source": "text", "packing": True}
    backbones = {"text": joint["backbones"]["text"]}
    found = OnPaper(recipe(objective=objective, backbones=backbones, data=joint["data"])).activations(
        {"text": 4}, bf16=False
    )
    assert found.bytes > 0 and not found.partly and not found.unknown


def test_a_pass_that_two_tasks_share_is_counted_once(recipe: Any, joint: dict[str, Any]) -> None:
    """Beside that, the second task keeps what its head does."""
    pair, masked = {"name": "next_sentence", "source": "text"}, {"name": "mlm", "source": "text"}
    apart, found = {"pair": pair, "masked": masked}, []
    together = apart | {"masked": masked | {"shares": "pair"}}
    for objective in ({"name": "joint", "parts": apart}, {"name": "joint", "parts": together}, pair):
        values = {"objective": objective, "backbones": {"text": joint["backbones"]["text"]}, "data": joint["data"]}
        found.append(OnPaper(recipe(**values)).activations({"text": 4}, bf16=False))
        assert not found[-1].partly and not found[-1].unknown
    two, shared, alone = (each.bytes for each in found)
    assert 0.8 * alone < two - shared < alone


def test_activations_say_where_the_count_ends(recipe: Any, joint: dict[str, Any], monkeypatch: Any) -> None:
    """A loss may ask for numbers, which a tensor without memory does not have: after the backbone, or before it."""
    networks = OnPaper(recipe(**joint))
    whole = networks.activations({"emoji": 8, "text": 4}, bf16=True)
    monkeypatch.setattr(Mlm, "forward", lambda self, batch, at: self.hidden(batch).sum().item())
    after = networks.activations({"emoji": 8, "text": 4}, bf16=True)
    assert set(after.partly) == {"words"} and not after.unknown
    monkeypatch.setattr(Mlm, "forward", lambda self, batch, at: batch["input_ids"].sum().item())
    before = networks.activations({"emoji": 8, "text": 4}, bf16=True)
    assert set(before.unknown) == {"words"} and "DataDependent" in before.unknown["words"]
    assert before.bytes < after.bytes < whole.bytes
