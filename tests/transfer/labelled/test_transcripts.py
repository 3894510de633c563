"""CTC against all ways to say a text, and frames of sounds."""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.transfer.labelled import transcripts
from bigssl.transfer.labelled.transcripts import (
    CtcHead,
    Frames,
    KeptFrames,
    Symbols,
    constant_text,
    ctc_loss,
    frames_needed,
    log_mel_frames,
    plain,
    together,
)


def said(numbers: tuple[int, ...]) -> list[int]:
    """Runs are one symbol, blanks none."""
    return [number for number, _ in itertools.groupby(numbers) if number]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 2), max_size=3), st.integers(0, 10**6))
def test_the_loss_is_that_of_all_ways_to_say_a_text(target: list[int], seed: int) -> None:
    logs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    ways = [way for way in itertools.product(range(3), repeat=5) if said(way) == target]
    likely = sum(math.exp(sum(logs[step, number].item() for step, number in enumerate(way))) for way in ways)
    found = ctc_loss(logs.repeat(2, 1, 1), torch.tensor([5, 5]), [target, target])
    assert found.item() == pytest.approx(-math.log(likely) / max(1, len(target)), rel=1e-4)
    shortest = next(
        size for size in range(7) if any(said(way) == target for way in itertools.product(range(3), repeat=size))
    )
    assert frames_needed(target) == shortest


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=9))
def test_greedy_texts_are_runs_without_blanks(best: list[int]) -> None:
    alphabet = Symbols(["b a", ""])
    assert alphabet.symbols == [" ", "a", "b"] and len(alphabet) == 4 and alphabet.numbers("ab") == [2, 3]
    assert alphabet.greedy(best) == plain("".join(" ab"[number - 1] for number in said(tuple(best))))


def test_transcripts_are_compared_as_they_are_learnt() -> None:
    assert plain("  A\u0308 B\n\tc ") == "\u00e4 b c" == plain("\u00c4 b C")
    assert constant_text(["ab", "ab", "cd"], lambda truth, text: sum(a != b for a, b in zip(truth, text, strict=False))
                         + abs(len(truth) - len(text))) == "ab"  # fmt: skip
    assert constant_text(["abc", "x"], lambda truth, text: len(text)) == ""


def test_the_head_sees_frames_of_sounds_alone_at_equal_scale() -> None:
    frames = [torch.randn(7, 4) * 3 + 5, torch.randn(2, 4)]
    head = CtcHead(iter(frames), 3)
    whole = torch.cat(frames)
    torch.testing.assert_close(head.mean, whole.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.scale, 1 / whole.std(0, correction=0), rtol=1e-4, atol=1e-5)
    both = together(frames, "cpu")
    assert both.counts.tolist() == [7, 2] and head(both).exp().sum(-1).allclose(torch.ones(2, 7))


def test_frames_are_kept_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch, cuda_autocast: Callable[[], AbstractContextManager[None]]
) -> None:
    asked: list[list[int]] = []

    def hear(rows: list[int]) -> Frames:
        asked.append(list(rows))
        assert not torch.is_autocast_enabled("cuda"), "sounds to be judged are heard in float32, too"
        return Frames(torch.tensor([[[float(row)]] * 3 for row in rows]), torch.tensor([2] * len(rows)))

    monkeypatch.setattr(transcripts, "KEPT", 8)  # one sound of two frames
    kept = KeptFrames(hear)
    with cuda_autocast():
        for rows in ([4, 5], [5, 4, 5]):
            assert [each.flatten().tolist() for each in kept.of(rows)] == [[row, row] for row in rows]
    assert asked == [[4, 5], [5]]


def test_a_mel_frame_hears_the_tone_of_its_time() -> None:
    """A low tone, then a high one: energy moves to other bands, in as many frames as the sound lasts."""
    rate = 2000
    steps = np.arange(rate) / rate
    sound = np.where(steps < 0.5, np.sin(2 * np.pi * 100 * steps), np.sin(2 * np.pi * 700 * steps)).astype(np.float32)
    batch = {"audio": torch.from_numpy(np.pad(sound, (0, 500)))[None].repeat(2, 1),
             "audio_mask": torch.tensor([[1] * 2000 + [0] * 500, [1] * 900 + [0] * 1600])}  # fmt: skip
    batch["audio"] = batch["audio"] * batch["audio_mask"]
    found = log_mel_frames(rate)(batch)
    assert found.counts.tolist() == [51, 23] and found.values.shape == (2, 63, 5 * 40)
    bands = found.values[0].view(63, 40, 5)
    middle = bands[..., 2]
    low, high = middle[5:20].mean(0).argmax().item(), middle[30:45].mean(0).argmax().item()
    assert low < 12 and high > 20
    for place in range(5):  # two frames before, itself, two behind it
        torch.testing.assert_close(bands[10:20, :, place], middle[8 + place : 18 + place])
