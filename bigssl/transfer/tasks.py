"""The tasks of the scorecard: each gives, per query, whether the trained network and its baselines were right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config import EvalImages, EvalText, EvalZeroShot
from bigssl.data import decode
from bigssl.data.errors import DataError
from bigssl.data.index import DatasetIndex
from bigssl.data.text import load_tokenizer
from bigssl.transfer import zero_shot as shot
from bigssl.transfer.collapse import feature_std, rankme
from bigssl.transfer.features import (
    Features,
    bag_of_words,
    centre,
    column,
    encode_texts,
    encode_with,
    metadata,
    network,
    raw,
    read_samples,
)
from bigssl.transfer.knn import encode_labels, knn_predict
from bigssl.transfer.retrieval import retrieval_hits
from bigssl.transfer.verdicts import judge, majority_hits

Tasks = dict[str, dict[str, Any]]
Health = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Networks:
    """A trained network, the same one with random weights, and how to run them."""

    trained: PreTrainedModel
    random_net: PreTrainedModel
    batch: int
    device: str | torch.device

    def images(self, url: str, size: int, *, with_raw: bool) -> dict[str, Features]:
        encoders = {"trained": network(self.trained, self.device), "random_net": network(self.random_net, self.device)}
        if with_raw:
            encoders["raw"] = raw
        return encode_with(encoders, DatasetIndex.load(url), size=size, batch=self.batch)

    def texts(self, words: Path, texts: list[str], length: int) -> dict[str, Tensor]:
        tokenizer = load_tokenizer(words)
        return {name: encode_texts(model, tokenizer, texts, length=length, batch=self.batch, device=self.device)
                for name, model in (("trained", self.trained), ("random_net", self.random_net))}


def _health(features: Tensor) -> dict[str, float]:
    return {"std": feature_std(features), "rankme": rankme(features)}


def images(networks: Networks, settings: EvalImages) -> tuple[Tasks, Health]:
    """kNN over a label, and finding the same item in another view, on images of `settings.queries`."""
    bank = networks.images(settings.bank, settings.size, with_raw=True)
    queries = networks.images(settings.queries, settings.size, with_raw=True)
    vectors = {name: centre(bank[name].vectors, queries[name].vectors) for name in bank}
    found = {"images.knn": _image_knn(vectors, bank["raw"], queries["raw"], settings)}
    if settings.pair is not None:
        rows = {name: pair[1] for name, pair in vectors.items()}
        found["images.retrieval"] = _image_retrieval(rows, queries["raw"], settings.pair, settings.view)
    return found, {name: _health(bank[name].vectors) for name in ("trained", "random_net")}


def _knn_hits(vectors: dict[str, list[Tensor]], labels: list[str], wanted: list[str], k: int, where: str
              ) -> tuple[dict[str, Tensor], int]:
    """Hits of each contender (and of the majority class), and the number of classes."""
    if k > len(labels):
        raise DataError(f"evaluate.{where}.k: value {k}, but the bank has {len(labels)} samples; "
                        f"allowed: 1 to {len(labels)}")
    (bank_labels, query_labels), classes = encode_labels(labels, wanted)
    hits = {"majority": majority_hits(wanted)}
    for name in ("random_net", "raw", "trained"):
        hits[name] = knn_predict(vectors[name][0], bank_labels, vectors[name][1], k=k) == query_labels
    return hits, len(classes)


def _image_knn(vectors: dict[str, list[Tensor]], bank: Features, queries: Features, settings: EvalImages
               ) -> dict[str, Any]:
    labels, wanted = bank.column(settings.label), queries.column(settings.label)
    hits, classes = _knn_hits(vectors, labels, wanted, settings.k, "images")
    subject = f"of {len(wanted)} unseen images get the right {settings.label} of {classes} from their {settings.k} " \
              "nearest neighbours"
    groups = queries.keys if settings.pair is None else queries.column(settings.pair)
    facts = {"bank": len(labels), "classes": classes, "k": settings.k}
    return judge(f"image kNN: {settings.label}", subject, hits, chance=1 / classes, groups=groups,
                 raw_name="raw pixels", facts=facts)


def _image_retrieval(rows: dict[str, Tensor], queries: Features, pair: str, view: str) -> dict[str, Any]:
    """Each ordered pair of views in turn: nearest neighbour of an item of one among all items of the other."""
    ids, views = queries.column(pair), queries.column(view)
    members = {name: [i for i, each in enumerate(views) if each == name] for name in sorted(set(views))}
    hits: dict[str, list[Tensor]] = {name: [] for name in rows}
    groups: list[str] = []
    chances: list[float] = []
    for a, b in [(a, b) for a in members for b in members if a != b]:
        there = {ids[i] for i in members[b]}
        asking = [i for i in members[a] if ids[i] in there]
        if not asking:
            continue
        groups += [ids[i] for i in asking]
        chances += [1 / len(members[b])] * len(asking)
        for name, vectors in rows.items():
            gallery = vectors[members[b]]
            hits[name].append(retrieval_hits(vectors[asking], gallery, [ids[i] for i in asking],
                                             [ids[i] for i in members[b]]))
    if not groups:
        raise DataError(f"evaluate.images.pair: value {pair!r}, but none occurs in two {view!r}s; allowed: a metadata "
                        "field that views of one item share, or null")
    subject = f"of {len(groups)} unseen images have the same {pair} in the other {view} as their nearest neighbour"
    joined = {name: torch.cat(parts) for name, parts in hits.items()}
    return judge(f"retrieval: same {pair}, other {view}", subject, joined, chance=sum(chances) / len(chances),
                 groups=groups, raw_name="raw pixels",
                 facts={"gallery": max(map(len, members.values()))})


@dataclass(frozen=True)
class _Captions:
    """Different texts with their labels and metadata; the same text twice is no second observation."""

    texts: list[str]
    labels: list[str]
    meta: list[dict[str, Any]]


def _captions(url: str, label: str) -> _Captions:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in read_samples(DatasetIndex.load(url)):
        text, meta = decode.text(decode.field(sample, ("txt",))), metadata(sample)
        found.setdefault((text, column([sample.key], [meta], label)[0]), meta)
    return _Captions([text for text, _ in found], [name for _, name in found], list(found.values()))


def texts(networks: Networks, words: Path, settings: EvalText) -> tuple[Tasks, Health]:
    """kNN over a label of texts; words: the exported folder with the tokenizer."""
    bank, queries = _captions(settings.bank, settings.label), _captions(settings.queries, settings.label)
    encoded = networks.texts(words, bank.texts, settings.length), networks.texts(words, queries.texts, settings.length)
    vectors = {name: centre(encoded[0][name], encoded[1][name]) for name in encoded[0]}
    vectors["raw"] = [bag_of_words(each.texts, bank.texts) for each in (bank, queries)]
    hits, classes = _knn_hits(vectors, bank.labels, queries.labels, settings.k, "text")
    subject = f"of {len(queries.texts)} unseen texts get the right {settings.label} of {classes} from their " \
              f"{settings.k} nearest neighbours"
    task = judge(f"text kNN: {settings.label}", subject, hits, chance=1 / classes, groups=queries.texts,
                 raw_name="TF-IDF bag of words",
                 facts={"bank": len(bank.texts), "classes": classes, "k": settings.k})
    return {"text.knn": task}, {name: _health(encoded[0][name]) for name in encoded[0]}


def zero_shot(images: Networks, text: Networks, words: Path, heads: dict[str, Tensor], settings: EvalZeroShot, *,
              seed: int, item: str | None) -> Tasks:
    """Images to classes that are known by texts alone: by their names, and by captions of other items.

    item: metadata field that pictures of one item share, for the standard error. The random networks get random
    projections from `seed`.
    """
    queries = images.images(settings.queries, settings.size, with_raw=False)
    wanted = queries["trained"].column(settings.label)
    groups = queries["trained"].keys if item is None else queries["trained"].column(item)
    captions = _captions(settings.captions, settings.label)
    missing = ", ".join(sorted(set(wanted) - set(captions.labels)))
    if missing:
        raise DataError(f"evaluate.zero_shot.captions: {settings.captions} has no text for {missing}")
    projections = {"trained": heads, "random_net": _random_heads(heads, seed)}
    pictures = {name: shot.project(each.vectors, projections[name]["image_projection"])
                for name, each in queries.items()}
    described = {"names": shot.class_names(captions.meta, settings.label),
                 "captions": (captions.texts, captions.labels)}
    found: Tasks = {}
    for kind, (sentences, labels) in described.items():
        (known, asked), classes = encode_labels(labels, wanted)
        hits = {"majority": majority_hits(wanted)}
        for name, vectors in text.texts(words, sentences, settings.length).items():
            prompts = shot.project(vectors, projections[name]["text_projection"])
            directions = shot.class_vectors(prompts, known, len(classes))
            hits[name] = shot.zero_shot_predict(pictures[name], directions) == asked
        source = {"names": "class names", "captions": "captions of other items"}[kind]
        subject = f"of {len(wanted)} unseen images get the right {settings.label} of {len(classes)} from {source} alone"
        found[f"zero_shot.{kind}"] = judge(
            f"zero-shot {settings.label}: {kind}", subject, hits, chance=1 / len(classes), groups=groups, raw_name="",
            facts={"classes": len(classes), "texts": len(sentences)})
    return found


def _random_heads(heads: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in heads.items()}
