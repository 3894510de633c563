"""Packing changes neither the loss nor its gradient, only how many rows it takes; no text is lost in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from bigssl.data.kinds.masking import IGNORE
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.engine import zero
from bigssl.nets.progress import Progress
from bigssl.objectives.mlm import Mlm

AT = Progress(0, 100)


def alone(_: np.random.Generator) -> Sample:
    raise AssertionError("this task asks for no other sample")

TEXTS = [
    "grinning face", "the state of the union is strong and it will be strong in all the years to come, I am sure",
    "a cat", "two hearts, and a third one below", "flag: France",
]  # fmt: skip


def sample(text: str, number: int = 0) -> Sample:
    return Sample(f"s{number}", {"txt": text.encode()}, number, 0, "x.tar", "emoji")


def prepared(task: Mlm, texts: list[str]) -> list[dict[str, Any]]:
    return [task.prepare(sample(text, n), np.random.default_rng(n), alone) for n, text in enumerate(texts)]


def assembled(task: Mlm, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return task.assemble({"emoji": collate(samples) | {SEEDS: torch.arange(len(samples))}})


def unpacked(packed: dict[str, Any], length: int) -> dict[str, Any]:
    """One row for each text of `packed`, padded, as the objective has it without packing."""
    rows: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row, segments in enumerate(packed["segments"]):
        for number in range(1, int(segments.max()) + 1):
            inside = segments == number
            rest = torch.full((length - int(inside.sum()),), 0)
            rows["input_ids"].append(torch.cat([packed["input_ids"][row][inside], rest]))
            rows["labels"].append(torch.cat([packed["labels"][row][inside], rest + IGNORE]))
            rows["attention_mask"].append(torch.cat([torch.ones(int(inside.sum()), dtype=torch.int64), rest]))
    return {name: torch.stack(found) for name, found in rows.items()} | {"labelled": packed["labelled"]}


def gradients(task: Mlm, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    task.zero_grad()
    total = task(batch, AT).total
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_the_loss_is_that_of_the_same_texts_unpacked(unit: str, objective: Any) -> None:
    task = objective(Mlm, "mlm", packing=True, masking=unit)
    batch = assembled(task, prepared(task, TEXTS))
    rows = unpacked(batch, task.backbone.length)
    assert len(batch["input_ids"]) < len(rows["input_ids"]) == 6  # the second text is longer than a row
    loss, grads = gradients(task, batch)
    plain = objective(Mlm, "mlm")
    expected, expected_grads = gradients(plain, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert grads.keys() == expected_grads.keys()
    for name, gradient in expected_grads.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_every_token_of_every_text_is_there(objective: Any) -> None:
    task = objective(Mlm, "mlm", packing=True)
    tokenizer = task.backbone.tokenizer
    batch = assembled(task, prepared(task, TEXTS))
    truth = torch.where(batch["labels"] != IGNORE, batch["labels"], batch["input_ids"])
    inside = [row[s > 0].tolist() for row, s in zip(truth, batch["segments"], strict=True)]
    specials = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    found = sorted(token for row in inside for token in row if token not in specials)
    assert found == sorted(token for text in TEXTS for token in tokenizer(text, add_special_tokens=False)["input_ids"])


def test_each_token_drops_by_itself_whoever_shares_its_row(objective: Any) -> None:
    """By seeds of the text's own: the same with other texts beside it."""
    task = objective(Mlm, "mlm", packing=True)
    rows = prepared(task, TEXTS)

    def seeds(*chosen: int) -> list[int]:
        picked = collate([rows[n] for n in chosen]) | {SEEDS: torch.tensor(chosen)}
        batch = task.assemble({"emoji": picked})
        found: list[int] = batch[SEEDS][batch["segments"] > 0].tolist()
        return found

    together, some = seeds(0, 1, 2, 3, 4), seeds(1, 4)
    assert len(set(together)) == len(together) == sum(len(row["input_ids"].values) for row in rows)
    assert set(some) < set(together)


def test_stats_say_what_is_wasted(objective: Any) -> None:
    task = objective(Mlm, "mlm", packing=True)
    batch = assembled(task, prepared(task, TEXTS))
    stats = task(batch, AT).stats
    assert stats["padding"].item() == pytest.approx((batch["segments"] == 0).float().mean().item())
    assert stats["padding"] < (unpacked(batch, 16)["attention_mask"] == 0).float().mean()
    plain = objective(Mlm, "mlm")
    rows = assembled(plain, prepared(plain, TEXTS))
    assert plain(rows, AT).stats["padding"].item() == pytest.approx((rows["input_ids"] == 0).float().mean().item())


@pytest.mark.parametrize("packing", [False, True])
def test_a_text_with_nothing_to_mask_is_counted_and_changes_nothing(packing: bool, objective: Any) -> None:
    task = objective(Mlm, "mlm", packing=packing)
    samples = prepared(task, ["a cat", "", "two hearts", " \n [MASK] "])
    full, without = assembled(task, samples), assembled(task, samples[::2])
    assert torch.isclose(task(full, AT).total, task(without, AT).total)
    assert task(full, AT).stats["unmaskable"].item() == 0.5
    assert task(without, AT).stats["unmaskable"].item() == 0.0
    empty = task(assembled(task, samples[1::2]), AT)
    assert empty.total.item() == 0 and empty.stats["unmaskable"].item() == 1.0
    empty.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def test_very_long_texts_give_a_window(objective: Any) -> None:
    task = objective(Mlm, "mlm", packing=True, longest=60)
    samples = [task.prepare(sample("word " * 500), np.random.default_rng(n), alone) for n in range(2)]
    assert all(12 <= len(s["input_ids"].values) <= 40 for s in samples)


def test_a_limit_that_has_no_effect_is_refused(objective: Any) -> None:
    with pytest.raises(ValidationError, match="longest 60 has no effect without packing"):
        objective(Mlm, "mlm", longest=60)


def test_documents_of_sentences(objective: Any) -> None:
    task = objective(Mlm, "mlm")
    rng = np.random.default_rng
    spoken = Sample("k", {"json": b'{"sentences": ["a cat", "a dog"], "label": 3}'}, 0, 0, "x.tar", "emoji")
    ours, plain = task.prepare(spoken, rng(0), alone), task.prepare(sample("a cat a dog"), rng(0), alone)
    for name, value in plain.items():
        np.testing.assert_array_equal(ours[name], value)


def on_ranks(make: Any, batch: Any) -> Any:
    zero.start()
    task = make(Mlm, "mlm", packing=True)
    total, grads = gradients(task, batch(task, rank=dist.get_rank(), world=dist.get_world_size()))
    dist.all_reduce(total)
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return total / dist.get_world_size(), grads


@pytest.mark.distributed
def test_two_ranks_that_pack_their_own_share_are_one_rank(objective: Any, batch: Any, ranks: Any) -> None:
    task = objective(Mlm, "mlm", packing=True)
    loss, grads = gradients(task, batch(task))
    for total, averaged in ranks(on_ranks, 2, objective, batch):
        torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-6)
        for name, gradient in grads.items():
            torch.testing.assert_close(averaged[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_loader_and_joint_recipes_pack_too(objective: Any, batch: Any) -> None:
    from bigssl.objectives.joint import Joint

    parts = {"words": {"name": "mlm", "packing": True}, "captions": {"name": "clip", "dim": 8}}
    task = objective(Joint, "joint", parts={n: {**p, "source": "emoji"} for n, p in parts.items()})
    data = batch(task)
    assert data["words"]["segments"].max() > 1
    losses = task(data, AT)
    assert losses.total.isfinite() and losses.parts["words"].stats["padding"] < 0.5


@pytest.mark.parametrize("unit", ["word", "span"])
def test_other_units_learn(unit: str, objective: Any, batch: Any) -> None:
    task = objective(Mlm, "mlm", masking=unit, packing=True)
    data = batch(task)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    first = task(data, AT).total.item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = task(data, AT).total
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first
