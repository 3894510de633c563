"""Images to classes that are described by texts: by their names alone (zero-shot), and by captions that carry the label
(a nearest class mean, which is no zero-shot: the captions are labelled, and so is the training set of its baseline)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bigssl.config.evaluate import EvalZeroShot
from bigssl.data.errors import display
from bigssl.transfer import zero_shot as shot
from bigssl.transfer.bench import Bench, Encoded, Networks, Task
from bigssl.transfer.features import column, has_picture, image_batches, raw, samples_at, text_encoder
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.knn import encode_labels, unit
from bigssl.transfer.team import AgreedError
from bigssl.transfer.verdicts import majority_hits, task_of

Heads = dict[str, Tensor]
NO_PICTURES = "The captions have no pictures beside them, so there are no class means of raw pixels to compare with."


def zero_shot(bench: Bench, images: Networks, text: Networks, size: int, words: TextInput, heads: Heads,
              settings: EvalZeroShot, *, seed: int, item: str | None) -> dict[str, Task]:
    """A collective. size: picture side in pixels. item: metadata field that pictures of one item share, for the
    standard error. The random networks get random projections from `seed`."""
    where, label = "evaluate.zero_shot", settings.label
    queries = bench.images(images, settings.queries, size=size, fields=[label, *([item] if item else [])],
                           limit=settings.query_limit, where=f"{where}.queries")  # fmt: skip
    captions = bench.captions(settings.captions, label, limit=settings.caption_limit, where=f"{where}.captions")
    wanted = queries.columns[label]
    missing = ", ".join(sorted(set(wanted) - set(captions.labels)))
    if missing:
        raise AgreedError(f"{where}.captions: {display(settings.captions)} has no text for {missing}")
    _check_heads(heads, queries.matrices["trained"].width, text.trained.config.hidden_size)
    projections = {"trained": heads, "random_net": _random_heads(heads, seed)}
    described = {"zero_shot.names": shot.class_names(captions.meta, label),
                 "class_mean.captions": (captions.texts, captions.labels)}
    groups = queries.keys if item is None else queries.columns[item]
    found: dict[str, Task] = {}
    for task, (sentences, labels) in described.items():
        (known, asked), classes = encode_labels(labels, wanted)
        hits = {"majority": majority_hits(wanted)}
        for name, model in text.items():
            directions = _directions(bench, text_encoder(model, words, bench.device), sentences, known, len(classes),
                                     projections[name]["text_projection"])  # fmt: skip
            hits[name] = _nearest(bench, queries, name, projections[name]["image_projection"], directions) == asked
        if task == "class_mean.captions":
            hits |= _raw_means(bench, queries, settings, size, classes, asked)
        found[task] = _judged(task, label, hits, len(classes), len(sentences), groups)
    return found


def _check_heads(heads: Heads, image: int, text: int) -> None:
    """image, text: values of a feature of the two backbones."""
    for name, width in (("image_projection", image), ("text_projection", text)):
        if name not in heads or heads[name].shape[1:] != (width,):
            there = ", ".join(f"{key} {list(value.shape)}" for key, value in sorted(heads.items()))
            raise AgreedError(
                f"evaluate.zero_shot.heads: {name} [any, {width}] is needed for these backbones, there is: {there}; "
                "allowed: two projections that were trained on image_backbone and text_backbone"
            )


def _judged(task: str, label: str, hits: dict[str, Tensor], classes: int, texts: int, groups: list[str]) -> Task:
    title, source = {
        "zero_shot.names": (f"zero-shot {label}: names", "class names alone"),
        "class_mean.captions": (f"class mean of captions: {label}", "the nearest mean of captions with that label"),
    }[task]
    subject = f"of {len(groups)} unseen images get the right {label} of {classes} from {source}"
    return task_of(title, subject, hits, chance=1 / classes, groups=groups, raw_name="class means of raw pixels",
                 facts={"classes": classes, "texts": texts})


def _directions(bench: Bench, encode: shot.TextEncoder, texts: Sequence[str], labels: Tensor, classes: int,
                projection: Tensor) -> Tensor:
    """[classes, P]: the direction of the mean of each class's unit text vectors; each rank encodes its share."""
    sums = torch.zeros(classes, len(projection))
    mine = bench.team.share(len(texts))

    def add() -> None:
        for start in range(mine.start, mine.stop, bench.batch):
            part = slice(start, min(start + bench.batch, mine.stop))
            sums.add_(shot.class_sums(shot.project(encode(texts[part]), projection), labels[part], classes))

    bench.team.gather(add)
    return unit(bench.team.total(sums))


def _nearest(bench: Bench, queries: Encoded, name: str, projection: Tensor, directions: Tensor) -> Tensor:
    def mine() -> Tensor:
        matrix = queries.matrices[name]
        pieces = matrix.pieces(bench.team.share(len(matrix)))
        found = [shot.zero_shot_predict(shot.project(piece, projection), directions) for _, piece in pieces]
        return torch.cat([torch.empty(0, dtype=torch.int64), *found])

    return bench.hits(mine)


def _raw_means(bench: Bench, queries: Encoded, settings: EvalZeroShot, size: int, classes: list[str], asked: Tensor
               ) -> dict[str, Tensor]:
    """The supervised baseline: the nearest class mean of the raw pixels of the pictures that the captions belong to,
    all centred by their mean. Nothing where they have no pictures."""
    index = bench.index(settings.captions)
    if not bench.team.each(lambda: has_picture(index)):
        bench.notes.append(NO_PICTURES)
        return {}
    matrix = queries.matrices["raw"]
    sums, counts = torch.zeros(len(classes), matrix.width), torch.zeros(len(classes))
    numbers = bench.numbers(index, settings.caption_limit, "evaluate.zero_shot.captions")

    def add() -> None:
        place = {name: i for i, name in enumerate(classes)}
        for batch in image_batches(samples_at(index, numbers), size=size, batch=bench.batch):
            labels = torch.tensor([place[name] for name in column(batch.keys, batch.meta, settings.label)])
            sums.add_(shot.class_sums(raw(batch.pixels).float() / 255, labels, len(classes)))
            counts.add_(torch.bincount(labels, minlength=len(classes)))

    bench.team.gather(add)
    sums, counts = bench.team.total(sums), bench.team.total(counts)
    mean = sums.sum(0) / counts.sum()
    directions = unit(sums / counts[:, None].clamp(min=1) - mean)

    def mine() -> Tensor:
        pieces = matrix.pieces(bench.team.share(len(matrix)))
        found = [shot.zero_shot_predict(piece - mean, directions) for _, piece in pieces]
        return torch.cat([torch.empty(0, dtype=torch.int64), *found])

    return {"raw": bench.hits(mine) == asked}


def _random_heads(heads: Heads, seed: int) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in heads.items()}
