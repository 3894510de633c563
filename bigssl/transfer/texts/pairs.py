"""Texts with a text to be made of each: translations, summaries. A text network reads, a small decoder that attends to
what it has read writes (Vaswani et al. 2017; Rothe et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertLMHeadModel, EncoderDecoderModel, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.nets.modality.kinds import ENCODER_DECODER
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.labelled.fit import FitBelow, fit, layer_groups
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.subjects import Subject
from bigssl.transfer.texts.states import fact, facts_of, filled, in_batches

IGNORED, HEAD = -100, 64  # width of an attention head of the decoder


class Pair(NamedTuple):
    source: str
    target: str


def read_pair(sample: Sample, source: str | None, target: str) -> Pair:
    """The source is the txt, or this field of the json; the target one of the json. Raises DataError where one is
    empty."""
    facts = facts_of(sample)
    if source is None:
        given = decode.text(decode.field(sample, decode.FIELDS["text"]))
    else:
        given = fact(facts, source, str, "a text")
    wanted = fact(facts, target, str, "a text")
    for name, value in ((source or "txt", given), (target, wanted)):
        if not value.strip():
            raise DataError(f"{name} is empty; leave such samples out")
    return Pair(given, wanted)


class Translating:
    """Pairs to learn from, and sources whose targets are asked.

    Args:
        length: tokens of a target at most; default those of a source.
        layers: of the decoder. beams: of the search; 1: the likeliest token each time.
    Raises:
        DataError: the tokenizer has no tokens for the begin and the end of a text.
    """

    def __init__(
        self, subject: Subject, train: Sequence[Pair], sources: Sequence[str], *, length: int | None, layers: int,
        beams: int,
    ) -> None:  # fmt: skip
        assert isinstance(subject.takes, TextInput)
        self.subject, self.layers, self.beams, self.takes = subject, layers, beams, subject.takes
        self.length, words = length or subject.takes.length, subject.takes.tokenizer
        ends = [next((n for n in pair if n is not None), None) for pair in
                ((words.cls_token_id, words.bos_token_id), (words.sep_token_id, words.eos_token_id))]  # fmt: skip
        if None in ends:
            raise DataError("its tokenizer has no token for the begin (cls_token, bos_token) and the end (sep_token, "
                            "eos_token) of a text; a decoder needs them")  # fmt: skip
        self._begin, self._end = int(ends[0] or 0), int(ends[1] or 0)
        self._padding = self._end if words.pad_token_id is None else words.pad_token_id
        self._learnt = [(self._source(each.source), self._target(each.target)) for each in train]
        self._asked = [self._source(each) for each in sources]

    def _source(self, text: str) -> np.ndarray:
        found = self.takes.tokenizer(text, truncation=True, max_length=self.takes.length)["input_ids"]
        if not found:
            raise DataError(f"source {text!r:.40} has no token; leave such samples out")
        return np.array(found, dtype=np.int64)

    def _target(self, text: str) -> np.ndarray:
        inner = self.takes.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([self._begin, *inner[: self.length - 1], self._end], dtype=np.int64)

    def longer(self, texts: Sequence[str], most: int, *, framed: bool) -> int:
        """How many of the texts have more tokens than that."""
        sizes = self.takes.tokenizer(list(texts), add_special_tokens=framed, verbose=False)["input_ids"]
        return sum(len(each) > most for each in sizes)

    def given_back(self, texts: Sequence[str]) -> list[str]:
        """Texts as the tokenizer reads and writes them: no network that uses it can write others."""
        return [self._text(self._target(text)) for text in texts]

    def _text(self, ids: Any) -> str:
        return str(self.takes.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def by_network(self, bench: Bench, settings: FitBelow, trial: Trial) -> list[str]:
        """What a network writes for each source, trained on the pairs of a trial."""
        seed, rows = bench.seed + trial.seed, trial.rows.tolist()
        encoder = reading_part(bench.network(self.subject, trial.contender, trial.seed))
        model = self._with_decoder(encoder, seed).to(bench.device)  # type: ignore[arg-type]
        inside = {id(parameter) for parameter in encoder.parameters()}
        above = [parameter for parameter in model.parameters() if id(parameter) not in inside]

        def loss(numbers: Tensor) -> Tensor:
            pairs = [self._learnt[rows[number]] for number in numbers.tolist()]
            ids, mask = filled([source for source, _ in pairs], self._padding, bench.device)
            given, shown = filled([target[:-1] for _, target in pairs], self._padding, bench.device)
            wanted = filled([target[1:] for _, target in pairs], self._padding, bench.device)[0]
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given, decoder_attention_mask=shown,
                           use_cache=False).logits.float()  # fmt: skip
            return cross_entropy(logits.flatten(0, 1), wanted.masked_fill(shown == 0, IGNORED).flatten(),
                                 ignore_index=IGNORED)  # fmt: skip

        fit(model, layer_groups(encoder, settings.layer_decay, above, settings.below), len(rows), loss, settings, seed)
        return self._written(bench, model)

    def _with_decoder(self, encoder: PreTrainedModel, seed: int) -> EncoderDecoderModel:
        """A decoder of the encoder's width with fresh weights from the seed, but for the encoder's embeddings where
        they have its width."""
        config, width = encoder.config, int(encoder.config.hidden_size)
        heads = max(1, width // HEAD)
        settings = BertConfig(
            vocab_size=config.vocab_size, hidden_size=width, num_hidden_layers=self.layers, intermediate_size=4 * width,
            num_attention_heads=heads if width % heads == 0 else 1, max_position_embeddings=self.length + 1,
            is_decoder=True, add_cross_attention=True, pad_token_id=None,
            bos_token_id=self._begin, eos_token_id=self._end,
        )  # fmt: skip
        with torch.random.fork_rng(), quietly():
            torch.manual_seed(seed)
            decoder = BertLMHeadModel(settings)
            before = {name: value.clone() for name, value in encoder.state_dict().items()}
            model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
        encoder.load_state_dict(before)  # it would make fresh weights of those that it did not load itself
        tables: list[Any] = [each.get_input_embeddings().weight for each in (decoder, encoder)]
        if tables[0].shape == tables[1].shape:
            tables[0].data.copy_(tables[1].detach())
        return model

    def _written(self, bench: Bench, model: Any) -> list[str]:
        settings = GenerationConfig(
            max_new_tokens=self.length, num_beams=self.beams, do_sample=False, pad_token_id=self._padding,
            decoder_start_token_id=self._begin, bos_token_id=self._begin, eos_token_id=self._end,
        )  # fmt: skip
        found: list[str] = []
        with evaluating(model), quietly():
            for rows in in_batches(len(self._asked), bench.batch):
                ids, mask = filled([self._asked[row] for row in rows], self._padding, bench.device)
                written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
                found += [self._text(each) for each in written.tolist()]
        return found


def reading_part(model: PreTrainedModel) -> PreTrainedModel:
    """What makes features of a text: of a network that writes, too, its encoder."""
    found: PreTrainedModel = model.get_encoder() if model.config.model_type in ENCODER_DECODER else model
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers reports: that weights are fresh, which is wanted."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
