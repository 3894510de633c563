"""The noise of BART: what is hidden, how much of it, and that nothing else happens to a text."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bigssl.data.kinds import text as textual
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.kinds.texts.infilling import in_another_order, infilled, noised, span_lengths, tokens_by_sentence
from bigssl.data.kinds.texts.pairs import split_sentences
from bigssl.data.kinds.vocabularies.training import train_tokenizer

DEMO = Path(textual.__file__).parents[2] / "demo"
MASK = -7
TEXT = "The Union is strong. Is it?  We meet (tonight) at 3.5 p.m. sharp; that is all! \n- - -\nGood night"
CHINESE = "我们今晚在此相聚。国家强盛吗？是的！谢谢大家"


def holes(ids: np.ndarray, seed: int, *, ratio: float = 0.3, span: float = 3.0, most: int = 1 << 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return infilled(ids, np.ones(len(ids), bool), rng, ratio=ratio, span=span, mask_id=MASK, most=most)


def hidden_before(found: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Of 0, 1, ..., size − 1 with holes: (masks, tokens that lack) of each run of masks; a loop over the tokens."""
    runs, expected, masks = [], 0, 0
    for token in [*found.tolist(), size]:
        if token == MASK:
            masks += 1
            continue
        assert token >= expected, "what is shown is in order, and nothing is shown twice"
        assert masks or token == expected, "nothing is hidden but behind a mask"
        runs += [(masks, token - expected)] if masks else []
        expected, masks = token + 1, 0
    return runs


def test_what_masks_hide_and_nothing_else_is_missing() -> None:
    """Runs of masks hide at most what their number, and never more than the share; whatever the size."""
    for seed, size in itertools.product(range(60), (0, 1, 2, 7, 50)):
        runs = hidden_before(holes(np.arange(size), seed), size)
        lacking = sum(tokens for _, tokens in runs)
        assert math.floor(0.3 * size) <= lacking <= math.ceil(0.3 * size)


def test_the_share_is_the_ratio_and_lengths_are_poisson() -> None:
    """A million tokens. A mask without a neighbour hides one span; one behind which is nothing stands anywhere."""
    size, count = 500, 2000
    lengths, lacking, spans, shown = Counter[int](), 0, 0, np.zeros(size)
    for seed in range(count):
        found = holes(np.arange(size), seed)
        runs = hidden_before(found, size)
        lengths.update(tokens for masks, tokens in runs if masks == 1)
        lacking, spans = lacking + sum(tokens for _, tokens in runs), spans + sum(masks for masks, _ in runs)
        shown[found[found != MASK]] += 1
    assert lacking / (size * count) == pytest.approx(0.3, abs=1e-6)
    assert spans / count == pytest.approx(0.3 * size / 3, abs=1)  # the last is cut
    alone = sum(lengths.values())
    for length in range(8):
        wanted = math.exp(-3) * 3**length / math.factorial(length)
        assert lengths[length] / alone == pytest.approx(wanted, abs=0.01), length
    assert np.allclose(1 - shown[20:-20] / count, 0.3, atol=5 * (0.21 / count) ** 0.5)


def test_lengths_fill_what_is_wanted() -> None:
    for budget in range(30):
        found = span_lengths(budget, 3.0, np.random.default_rng(budget))
        assert found.sum() == budget and (found >= 0).all() and not (budget and found[-1] == 0)


def test_nothing_grows_beyond_the_room_and_special_tokens_stay() -> None:
    ids = np.arange(40)
    free = ids % 3 != 0
    for seed in range(200):
        assert len(holes(ids, seed, ratio=0.9, span=1.0, most=40)) <= 40  # a third of the spans hide nothing
        rng = np.random.default_rng(seed)
        found = infilled(ids, free, rng, ratio=0.6, span=3.0, mask_id=MASK, most=40)
        assert set(ids[~free]) <= set(found) and len(found) <= 40
        hidden_before(found, 40)


def test_sentences_stay_whole_and_take_every_order() -> None:
    sentences = np.array([0, 0, 1, 1, 1, 3])
    found = Counter(tuple(in_another_order(sentences, np.random.default_rng(seed))) for seed in range(6000))
    parts = [(0, 1), (2, 3, 4), (5,)]
    assert found.keys() == {sum(order, ()) for order in itertools.permutations(parts)}
    assert all(abs(times - 1000) < 5 * 1000**0.5 for times in found.values())


@pytest.mark.parametrize(("text", "kind"), [(TEXT, "words"), (TEXT, "bpe"), (CHINESE, "unigram")])
def test_tokens_are_those_of_the_text_and_belong_to_the_sentence_they_begin_in(
    text: str, kind: str, tmp_path: Path
) -> None:
    if kind == "words":
        tokenizer = load_tokenizer(DEMO / "tokenizer.json")
    else:
        train_tokenizer([TEXT, CHINESE] * 3, 300, tmp_path / "tokenizer.json", kind)
        tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, numbers = tokens_by_sentence(tokenizer, text)
    assert ids.tolist() == whole["input_ids"] and numbers[0] == 0 and numbers[-1] >= 3
    for (begin, end), number in zip(whole["offset_mapping"], numbers, strict=True):
        inside = [n for n, (first, last) in enumerate(split_sentences(text).spans) if first <= begin < last]
        assert inside == [number] or begin == end


def test_source_and_target_are_one_text_and_a_text_without_tokens_is_an_empty_frame() -> None:
    tokenizer = load_tokenizer(DEMO / "tokenizer.json")
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    orders = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        source, target = noised(tokenizer, *tokens_by_sentence(tokenizer, TEXT), rng, 24, ratio=0.3, span=3.0,
                                permute=seed % 2 == 0)  # fmt: skip
        assert target.tolist() == [cls, *tokenizer(TEXT, add_special_tokens=False)["input_ids"][:22], sep]
        assert (source[0], source[-1]) == (cls, sep) and len(source) <= 24
        seen, there = Counter(source.tolist()), Counter(target.tolist())
        del seen[mask]
        assert seen <= there, "what the source shows is of the target"
        kept = [token for token in source.tolist() if token != mask]
        in_order = iter(target.tolist())
        orders.add((seed % 2, all(token in in_order for token in kept)))
    assert orders == {(0, True), (0, False), (1, True)}, "sentences change places where that is asked, and only there"
    nothing = tokens_by_sentence(tokenizer, " \n ")
    for found in noised(tokenizer, *nothing, np.random.default_rng(0), 24, ratio=0.3, span=3.0, permute=True):
        assert found.tolist() == [cls, sep]
