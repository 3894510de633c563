"""Speech recognition: transcripts from the frames of an audio backbone, by connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl.config.evaluate import METADATA
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import finite, metadata
from bigssl.transfer.inputs import AudioInput, input_of
from bigssl.transfer.labelled.examples import Examples, learnt_and_judged
from bigssl.transfer.labelled.fit import FitBelow, fit, layer_groups
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.transcripts import (
    CtcHead,
    FramesOf,
    KeptFrames,
    Symbols,
    constant_text,
    ctc_loss,
    frames_needed,
    log_mel_frames,
    network_frames,
    plain,
    together,
)
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.errors import Edits, character_edits, error_rate, word_edits
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.subjects import Subject
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

MEL = RAW + "log-mel frames"
MEASURES = (("wer", "words", word_edits), ("cer", "characters", character_edits))


class Transcript(NamedTuple):
    """Of a sound; cut: it is longer than what the backbone takes, so that its end is not heard."""

    text: str
    cut: bool


class Said(NamedTuple):
    """What was made of each sound that is judged; left_out: training sounds with fewer frames than their transcripts
    need."""

    texts: list[str]
    left_out: int


class Ctc(Learning, FitBelow):
    """Greedy transcripts of held-out sounds, by a linear head over the characters of the training transcripts.

    Transcripts are compared in lower case, with one space between words. A character that no training transcript has
    is never said, and counts as wrong. Of a sound that is longer than the backbone takes the beginning is heard: it is
    judged, and not trained on.
    """

    preset = {"train": "made/speech/train", "queries": "made/speech/val", "seeds": 1, "fractions": [0.25, 1.0],
              "epochs": 12, "lr": 0.05, "fit_batch": 8}  # fmt: skip

    backbone: str = "audio"
    label: Annotated[str | None, METADATA] = Field(
        None, description="metadata field with the transcript; default the txt beside the sound"
    )
    item: Annotated[str | None, METADATA] = Field(
        None, description="metadata field that samples of one speaker share: they count as one"
    )
    tune: Literal["head", "all"] = Field("head", description="what is trained: the head, or the backbone with it")
    lr: Annotated[float, Field(gt=0)] = Field(1e-2, description="greatest learning rate, of the head")

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone", "audio"))
        seen.samples("train", takes, "label")
        seen.samples("queries", takes, "label", "item")
        seen.apart("train")
        if self.label is None:
            seen.documents("train")
            seen.documents("queries")

    def run(self, bench: Bench) -> list[ScoreRow]:
        work = _Work.of(self, bench)
        asked = trials(self, ["random_net", MEL, "trained"], len(work.train), seed=bench.seed)
        found = outcomes(bench, asked, work.said)
        if left := max(each.left_out for each in found.values()):
            bench.note(f"{bench.where}.train: up to {left} of {len(work.train)} sounds are not learnt from: they have "
                       "fewer frames than CTC needs for their transcripts, or are cut.")  # fmt: skip
        return [self._row(work, number, found) for number in range(len(MEASURES))]

    def _row(self, work: _Work, number: int, found: Mapping[Trial, Said]) -> ScoreRow:
        name, parts, edits = MEASURES[number]
        truths = [each.text for each in work.test.targets]

        def records(texts: Sequence[str]) -> list[Edits]:
            return [edits(truth, said) for truth, said in zip(truths, texts, strict=True)]

        constant = constant_text([each.text for each in work.train.targets], lambda *texts: edits(*texts).edits)
        return scored(
            f"speech recognition: {name.upper()}", f"is the error rate of {parts} of {len(truths)} unseen sounds",
            {trial: records(said.texts) for trial, said in found.items()}, work.test.groups(self.item),
            fixed={"blind": records([constant] * len(truths))}, measure=error_rate, higher_is_better=False,
            names={"blind": f"always {constant!r}" if constant else "an empty transcript"},
            facts={"samples": len(work.train), "symbols": len(work.alphabet) - 1}, row=name,
        )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    section: Ctc
    bench: Bench
    subject: Subject
    takes: AudioInput
    train: Examples
    test: Examples
    alphabet: Symbols

    @classmethod
    def of(cls, section: Ctc, bench: Bench) -> _Work:
        """A collective."""
        subject = bench.subject(section.backbone, "audio")
        takes = subject.takes
        assert isinstance(takes, AudioInput)

        def target(sample: Sample) -> Transcript:
            return _transcript(sample, section.label, takes)

        train, test = learnt_and_judged(bench, section, takes, target, section.item)
        for name, part in (("train", train), ("queries", test)):
            if not any(each.text for each in part.targets):
                raise AgreedError(f"{bench.where}.{name}: {len(part)} transcripts, all of them empty; allowed: some "
                                  "with words")  # fmt: skip
            if cut := sum(each.cut for each in part.targets):
                what = "are not learnt from" if name == "train" else "are judged by their beginning"
                bench.note(f"{bench.where}.{name}: {cut} of {len(part)} sounds are longer than the "
                           f"{takes.length / takes.rate:g} s that the backbone takes: they {what}.")  # fmt: skip
        alphabet = Symbols(each.text for each in train.targets)
        if section.permuted:
            train = train.permuted(bench.seed)
        return cls(section, bench, subject, takes, train, test, alphabet)

    def said(self, trial: Trial) -> Said:
        seed = self.bench.seed + trial.seed
        model = None if trial.contender == MEL else self.bench.network(self.subject, trial.contender, trial.seed)
        frames = log_mel_frames(self.takes.rate) if model is None else network_frames(model)
        tuned = model if self.section.tune == "all" else None
        heard = KeptFrames(lambda rows: frames(self._batch(self.train, rows)))
        rows = self._long_enough(trial.rows.tolist(), heard)
        if not rows:
            raise DataError(f"none of {len(trial.rows)} sounds to learn from has as many frames as its transcript "
                            "needs; use a backbone with more frames, or shorter transcripts")  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = CtcHead((each for part in self._parts(rows) for each in heard.of(part)), len(self.alphabet))
        head.to(self.bench.device)

        def loss(numbers: Tensor) -> Tensor:
            chosen = [rows[number] for number in numbers.tolist()]
            found = frames(self._batch(self.train, chosen)) if tuned else together(heard.of(chosen), self.bench.device)
            targets = [self.alphabet.numbers(self.train.targets[row].text) for row in chosen]
            return ctc_loss(head(found), found.counts, targets)

        own = list(head.parameters())
        groups = layer_groups(tuned, self.section.layer_decay, own, self.section.below) if tuned else [{"params": own}]
        fit(nn.ModuleList([head, tuned] if tuned else [head]), groups, len(rows), loss, self.section, seed)
        return Said(list(self._read(head, frames)), len(trial.rows) - len(rows))

    def _batch(self, of: Examples, rows: Sequence[int]) -> dict[str, Tensor]:
        return {name: value.to(self.bench.device) for name, value in of.batch(rows).items()}

    def _parts(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        for first in range(0, len(rows), self.section.fit_batch):
            yield rows[first : first + self.section.fit_batch]

    def _long_enough(self, rows: Sequence[int], heard: KeptFrames) -> list[int]:
        """Those training sounds that are heard whole, and with as many frames as CTC needs."""
        whole = [row for row in rows if not self.train.targets[row].cut]
        counts = [len(each) for part in self._parts(whole) for each in heard.of(part)]
        return [row for row, count in zip(whole, counts, strict=True)
                if frames_needed(self.alphabet.numbers(self.train.targets[row].text)) <= count]  # fmt: skip

    @torch.no_grad()
    def _read(self, head: CtcHead, frames: FramesOf) -> Iterator[str]:
        for rows in self._parts(range(len(self.test))):
            found = frames(self._batch(self.test, rows))
            best = finite(head(found), "log probabilities of frames").argmax(-1).tolist()
            for numbers, count in zip(best, found.counts.tolist(), strict=True):
                yield self.alphabet.greedy(numbers[:count])


def _transcript(sample: Sample, label: str | None, takes: AudioInput) -> Transcript:
    """Raises DataError."""
    if label is None:
        text = decode.text(decode.field(sample, decode.FIELDS["text"]))
    else:
        found = metadata(sample).get(label)
        if not isinstance(found, str):
            raise DataError(f"{label} in its json is {found!r}; allowed: a transcript, a string")
        text = found
    values, _ = decode.audio(decode.field(sample, decode.FIELDS["audio"]), rate=takes.rate, mono=True)
    return Transcript(plain(text), len(values) > takes.length)
