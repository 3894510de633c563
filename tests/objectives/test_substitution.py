"""How many tokens are predicted while a run goes on, and what stands in for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.order.order import as_it_is
from bigssl.data.sample import Sample
from bigssl.objectives.base import discover

ENDS = {"ratio": 0.1, "ratio_end": 0.7}
SUBSTITUTED = {"ratio": 0.9, "mask_share": 0.0, "random_share": 1.0, "substitute": "unigram"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("mlm", {"masking": "span"}), "packed": ("mlm", {"packing": True}), "replaced_token": ("replaced_token", {}),
}


def guest(**settings: Any) -> dict[str, Any]:
    return {"parts": {"next": {"name": "next_sentence"}, "masked": {"name": "mlm", "shares": "next", **settings}}}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, each in value.items() for key, leaf in leaves(each, f"{path}.{name}").items()}


def same(one: Any, other: Any) -> bool:
    mine, its = leaves(one), leaves(other)
    return mine.keys() == its.keys() and all(
        torch.equal(value, its[key]) if isinstance(value, Tensor) else str(value) == str(its[key])
        for key, value in mine.items()
    )


# How many


@pytest.mark.parametrize("case", [*SETTINGS, "guest"])
def test_a_step_masks_what_the_share_of_that_step_would_mask(case: str, objective: Any, batch: Any) -> None:
    """The same bits as with that share throughout, of a part of the ranks and passes too."""
    name, settings = SETTINGS.get(case, ("joint", {}))

    def made(**changes: Any) -> Any:
        fields = guest(**changes) if case == "guest" else settings | changes
        return objective(discover()[name], name, **fields)

    ramp, counts, data_of = made(**ENDS), [], {"data": "text/train"} if case == "guest" else {}
    for step, share in ((0, 0.1), (50, 0.4), (99, 0.1 + 0.6 * 0.99)):
        data, constant = batch(ramp, step=step, **data_of), made(ratio=share)
        assert same(data, batch(constant, step=step, **data_of))
        part = {"rank": 1, "world": 2, "accum": 2, "micro": 1, "step": step, **data_of}
        assert same(batch(ramp, **part), batch(constant, **part))
        counts.append(next(iter(ramp.units(data).values())) if case != "guest" else ramp.units(data)["masked/"])
    assert counts[0] < counts[1] < counts[2]


# What stands in


def documents(texts: list[str]) -> Callable[..., Any]:
    """A `more` that draws one of these."""
    made = [Sample(f"d{n}", {"txt": text.encode()}, n, 0, "x.tar", "emoji") for n, text in enumerate(texts)]
    return lambda rng, use=as_it_is: use(made[int(rng.integers(len(made)))])


OTHERS = ["a b a c a d", "a a a a e e", "", "b a a a a c", " \n"]  # of six tokens, or of none
OWN = "z y x w v u t s"


def substitutes(task: Any, more: Any, times: int) -> tuple[Counter[str], int]:
    """What stood in for tokens of OWN, and how many were to be predicted."""
    found, asked = Counter[str](), 0
    for seed in range(times):
        sample = Sample("s", {"txt": OWN.encode()}, 0, 0, "x.tar", "emoji")
        own = task.prepare(sample, np.random.default_rng(seed), more)
        ids, labels = (getattr(own[name], "values", own[name]) for name in ("input_ids", "labels"))
        selected = labels != IGNORE
        found.update(task.backbone.tokenizer.convert_ids_to_tokens(ids[selected]))
        asked += int(selected.sum())
    return found, asked


@pytest.mark.parametrize("packing", [False, True])
def test_what_stands_in_is_as_frequent_as_in_other_documents(packing: bool, objective: Any) -> None:
    task = objective(discover()["mlm"], "mlm", packing=packing, **SUBSTITUTED)
    found, asked = substitutes(task, documents(OTHERS), 300)
    want = Counter(" ".join(OTHERS).split())
    assert task.draws_more and found.keys() == want.keys() and asked > 2000
    for token, count in want.items():
        share = count / want.total()
        # of a text, substitutes are out of four windows: so many independent draws there are at least
        assert abs(found[token] / asked - share) < 4 * np.sqrt(share * (1 - share) / (300 * 4)), token


def test_shares_are_those_of_the_recipe_and_the_rest_stays(objective: Any) -> None:
    """As masks, as others, as they are."""
    task = objective(discover()["mlm"], "mlm", ratio=0.9, mask_share=0.5, random_share=0.3, substitute="unigram")
    found, asked = substitutes(task, documents(["a b c"]), 300)
    own = sum(found[token] for token in OWN.split())
    for count, share in ((found["[MASK]"], 0.5), (found["a"] + found["b"] + found["c"], 0.3), (own, 0.2)):
        assert abs(count / asked - share) < 4 * np.sqrt(share * (1 - share) / asked)
    assert found["[MASK]"] + found["a"] + found["b"] + found["c"] + own == asked


def test_of_long_documents_windows_are_drawn_and_no_word_in_part(objective: Any) -> None:
    task = objective(discover()["mlm"], "mlm", **SUBSTITUTED)
    words = ["state", "union", "people"]
    found, _ = substitutes(task, documents([" ".join(words * 500)]), 50)
    assert found.keys() == set(words)


def test_a_guest_draws_for_the_pairs_of_its_host(objective: Any, batch: Any) -> None:
    task = objective(discover()["joint"], "joint", **guest(**SUBSTITUTED))
    data = batch(task, data="text/train")
    asked = data["masked"]["labels"] != IGNORE
    shown = data["next"]["input_ids"]
    assert asked.any(1).all() and not (shown == task.parts["masked"].backbone.tokenizer.mask_token_id).any()
    assert (shown != data["masked"]["labels"])[asked].float().mean() > 0.8
    special = torch.tensor(task.parts["masked"].backbone.tokenizer.all_special_ids)
    unknown = task.parts["masked"].backbone.tokenizer.unk_token_id
    assert not torch.isin(shown[asked], special[special != unknown]).any()


def test_what_cannot_stand_in_is_refused(objective: Any) -> None:
    kind = discover()["mlm"]
    with pytest.raises(DataError, match="of 32 other documents none has a token to stand in for one; allowed"):
        substitutes(objective(kind, "mlm", **SUBSTITUTED), documents(["", " "]), 1)
    for fields, said in (
        ({"mask_share": 0.95}, r"mask_share 0\.95 and random_share 0\.1 sum to 1\.05; allowed: more than 0"),
        ({"mask_share": 0, "random_share": 0}, r"sum to 0; allowed"),
        ({"random_share": 0, "substitute": "unigram"}, "substitute unigram has no effect with random_share 0"),
    ):
        with pytest.raises(ValidationError, match=said):
            objective(kind, "mlm", **fields)
