"""Speech recognition by connectionist temporal classification (CTC, Graves et al. 2006): symbols, frames, head."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.audio_utils import mel_filter_bank

from bigssl.nets.modality import modality_of_type
from bigssl.nets.pool import normalise_sound

BLANK = 0
WINDOW, HOP = 0.025, 0.02  # seconds of a frame of the spectrum, and from one to the next
KEPT = 256 << 20  # bytes of frames in memory
BANDS, BESIDE = 40, 2  # of a frame; and frames on either side that the head sees, too
Batch = Mapping[str, Tensor]


class Frames(NamedTuple):
    """values: float32 [B, T, D]. counts: int64 [B], how many of them are of the sound."""

    values: Tensor
    counts: Tensor


FramesOf = Callable[[Batch], Frames]


def plain(text: str) -> str:
    """A transcript as it is learnt and compared: NFC, lower case, one space between words."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


class Symbols:
    """The characters of transcripts; number 0 is the blank."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.symbols = sorted({symbol for text in texts for symbol in text})
        self._numbers = {symbol: number for number, symbol in enumerate(self.symbols, BLANK + 1)}

    def __len__(self) -> int:
        """With the blank."""
        return len(self.symbols) + 1

    def numbers(self, text: str) -> list[int]:
        """Of a text of its characters."""
        return [self._numbers[symbol] for symbol in text]

    def greedy(self, best: Sequence[int]) -> str:
        """The text of the most probable number of each frame: repetitions are one, blanks are none."""
        kept = [number for number, before in zip(best, [BLANK, *best], strict=False) if number not in (BLANK, before)]
        return plain("".join(self.symbols[number - BLANK - 1] for number in kept))


def frames_needed(numbers: Sequence[int]) -> int:
    """CTC needs a blank between two equal symbols."""
    return len(numbers) + sum(one == other for one, other in zip(numbers, numbers[1:], strict=False))


def network_frames(model: PreTrainedModel) -> FramesOf:
    """Hidden states of collated sounds on the model's device."""
    row = modality_of_type(model.config.model_type)
    assert row is not None

    def frames(batch: Batch) -> Frames:
        hidden, mask = row.run(model, row.inputs(model, batch))
        whole = torch.full((len(hidden),), hidden.shape[1], device=hidden.device)
        return Frames(hidden.float(), whole if mask is None else mask.long().sum(1))

    return frames


def log_mel_frames(rate: int) -> FramesOf:
    """Log power in `BANDS` mel bands, each frame with its neighbours: what there is to hear without a network.

    rate: samples per second.
    """
    size, hop = round(WINDOW * rate), max(1, round(HOP * rate))
    points = 4 * 2 ** math.ceil(math.log2(size))  # fine enough for the narrowest band
    bank = torch.from_numpy(mel_filter_bank(points // 2 + 1, BANDS, 0.0, rate / 2, rate)).float()

    def frames(batch: Batch) -> Frames:
        sounds, mask = batch["audio"], batch["audio_mask"]
        window = torch.hann_window(size, device=sounds.device)
        spectrum = torch.stft(normalise_sound(sounds, mask), points, hop, size, window, pad_mode="constant",
                              return_complex=True).abs().square()  # fmt: skip
        bands = (spectrum.transpose(1, 2) @ bank.to(sounds.device) + 1e-6).log()  # [B, T, BANDS]
        beside = F.pad(bands, (0, 0, BESIDE, BESIDE)).unfold(1, 2 * BESIDE + 1, 1).flatten(2)
        return Frames(beside, mask.sum(1) // hop + 1)

    return frames


class KeptFrames:
    """Frames of sounds by number, as a network that is not trained hears them: kept on the CPU while all of them take
    less than `KEPT` bytes.

    Args:
        hear: of some sounds, their frames.
    """

    def __init__(self, hear: Callable[[Sequence[int]], Frames]) -> None:
        self._hear, self._room = hear, KEPT
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def of(self, rows: Sequence[int]) -> list[Tensor]:
        """float32 [frames, D] of each, on the CPU."""
        lacking = [row for row in dict.fromkeys(rows) if row not in self._kept]
        new: dict[int, Tensor] = {}
        if lacking:
            with torch.autocast("cuda", enabled=False):  # in a training, too: as sounds to be judged are heard
                values, counts = self._hear(lacking)
            heard = zip(lacking, values, counts.tolist(), strict=True)
            new = {row: frames[:count].cpu() for row, frames, count in heard}
        for row, frames in new.items():
            if frames.nbytes <= self._room:
                self._kept[row] = frames.clone()
                self._room -= frames.nbytes
        return [new[row] if row in new else self._kept[row] for row in rows]


def together(frames: Sequence[Tensor], device: str | torch.device) -> Frames:
    """Sounds [frames, D] each as one batch on the device."""
    padded = pad_sequence(list(frames), batch_first=True)
    return Frames(padded.to(device), torch.tensor([len(each) for each in frames]).to(device))


class CtcHead(nn.Module):
    """A linear map from frames, at mean 0 and variance 1 over the training part, to symbols."""

    mean: Tensor
    scale: Tensor

    def __init__(self, frames: Iterable[Tensor], symbols: int) -> None:
        """frames: float32 [frames, D] of each sound of the training part."""
        super().__init__()
        count, sums, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for each in frames:
            count, sums = count + len(each), sums + each.double().sum(0)
            squares = squares + each.double().square().sum(0)
        mean = sums / count
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", (squares / count - mean.square()).clamp(min=1e-8).rsqrt().float())
        self.linear = nn.Linear(len(mean), symbols)

    def forward(self, frames: Frames) -> Tensor:
        """Log probabilities float32 [B, T, symbols]."""
        logits: Tensor = self.linear((frames.values - self.mean) * self.scale)
        return logits.float().log_softmax(-1)


def ctc_loss(logs: Tensor, counts: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Mean over the sounds [B] of the loss of each, divided by its number of symbols (1 at least)."""
    flat = torch.tensor([number for target in targets for number in target], dtype=torch.int64)
    sizes = torch.tensor([len(target) for target in targets])
    device = logs.device
    losses = F.ctc_loss(logs.transpose(0, 1), flat.to(device), counts, sizes.to(device), BLANK, reduction="none")
    return (losses / sizes.clamp(min=1).to(device)).mean()


def constant_text(texts: Sequence[str], rate: Callable[[str, str], float], most: int = 100) -> str:
    """What to say without hearing anything: of nothing and the most frequent texts, what is nearest to the first of
    `texts` on the whole. rate: (truth, said) -> how wrong that is."""
    candidates = ["", *(text for text, _ in Counter(texts).most_common(most))]
    return min(dict.fromkeys(candidates), key=lambda said: sum(rate(truth, said) for truth in texts[: 10 * most]))
