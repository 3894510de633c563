"""Frames of networks that hear: as the whole network makes them, hidden ones replaced; codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigssl.config.recipe import BackboneConfig
from bigssl.nets.sound.codes import Codebooks, perplexities, unused, use_of_words
from bigssl.nets.sound.frames import WITH_TOKEN, Steps, encode_frames
from bigssl.nets.towers import Tower

SOUND: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": [8, 8],
    "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def tower(kind: str) -> Tower:
    torch.manual_seed(0)
    config = SOUND | ({"num_buckets": 8, "max_bucket_distance": 20} if kind == "wavlm" else {})
    return Tower("audio", BackboneConfig(type=kind, rate=8000, length=400, config=config), None).eval()


def sounds() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 400, dtype=torch.int64)
    mask[1, 250:] = 0
    return {"audio": torch.randn(3, 400, generator=torch.Generator().manual_seed(1)) * mask, "audio_mask": mask}


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # wavlm's own
@pytest.mark.parametrize("kind", WITH_TOKEN)
@torch.no_grad()
def test_frames_are_those_of_the_network_and_hidden_ones_are_not_heard(kind: str) -> None:
    net, batch = tower(kind), sounds()
    heard = encode_frames(net.model, batch)
    torch.testing.assert_close(heard.hidden, net.hidden(batch))
    steps = Steps.of(net.model.config)
    assert heard.hidden.shape[1] == steps.frames(400) == heard.latents.shape[1]
    hidden = torch.zeros(heard.hidden.shape[:2], dtype=torch.bool)
    hidden[:, 12:15] = True
    token = torch.full((net.dim,), 0.3)
    one = encode_frames(net.model, batch, hidden, token).hidden
    inside = torch.zeros(400, dtype=torch.bool)
    inside[12 * steps.stride + steps.seen : 14 * steps.stride] = True  # what no visible frame sees
    other = batch | {"audio": batch["audio"].where(~inside, batch["audio"].roll(1, 0))}
    if getattr(net.model.config, "feat_extract_norm", "layer") == "group":  # the first convolution's norm sees it
        assert not torch.equal(heard.hidden, one)
        return
    torch.testing.assert_close(encode_frames(net.model, other, hidden, token).hidden, one, rtol=1e-3, atol=1e-3)


@given(samples=st.integers(0, 2000), kernels=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1,
                                                      max_size=4))  # fmt: skip
def test_steps_are_those_of_convolutions(samples: int, kernels: list[tuple[int, int]]) -> None:
    class Config:
        conv_kernel, conv_stride = [k for k, _ in kernels], [s for _, s in kernels]

    left = samples
    for kernel, stride in kernels:
        left = max(0, (left - kernel) // stride + 1)
    assert Steps.of(Config()).frames(samples) == left  # type: ignore[arg-type]


def test_codes_are_words_of_each_book_with_the_gradient_of_the_softmax() -> None:
    torch.manual_seed(0)
    books = Codebooks(6, 2, 3, 8).double()
    frames, noise = torch.randn(5, 6).double(), torch.randn(5, 6).double()
    coded = books(frames, noise, 0.7)
    logits = books.weight_proj(frames).view(5, 2, 3)
    words = books.codevectors.view(2, 3, 4)
    for n in range(5):
        for g in range(2):
            word = int((logits[n, g] + noise.view(5, 2, 3)[n, g]).argmax())
            assert coded.ids[n, g] == word
            torch.testing.assert_close(coded.vectors[n, 4 * g : 4 * g + 4], words[g, word], rtol=1e-6, atol=1e-6)
    coded.vectors.square().sum().backward()
    soft = ((logits.detach() + noise.view(5, 2, 3)) / 0.7).softmax(-1)
    chosen = torch.einsum("ngv,gvd->ngd", torch.nn.functional.one_hot(coded.ids, 3).double(), words.detach())
    toward = torch.einsum("ngd,gvd->ngv", 2 * chosen, words.detach())  # d loss / d choice
    slope = soft * (toward - (soft * toward).sum(-1, keepdim=True)) / 0.7
    expected = torch.einsum("nk,nc->kc", slope.flatten(1), frames)
    torch.testing.assert_close(books.weight_proj.weight.grad, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(books(frames, None, 1.0).ids, logits.argmax(-1))


def test_the_use_of_words_at_its_ends() -> None:
    even = torch.zeros(8, 2, 4)
    assert unused(even).item() == pytest.approx(0, abs=1e-6)
    one = torch.full((8, 2, 4), -50.0)
    one[..., 1] = 50
    assert unused(one).item() == pytest.approx((8 - 2) / 8) and use_of_words(one).item() == pytest.approx(0, abs=1e-6)
    all_four = torch.eye(4).repeat(2, 1)[:, None].expand(8, 2, 4) * 9
    assert use_of_words(all_four).item() == pytest.approx(1) and use_of_words(all_four[:3]).item() == pytest.approx(1)
    assert perplexities(torch.tensor([[0.5, 0.5, 0, 0]])).item() == pytest.approx(2)
