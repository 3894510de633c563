"""The online probe: how good and how healthy the features of the live network are, during training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl import distributed
from bigssl.config.evaluate import ProbeConfig
from bigssl.data.errors import DataError, display
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.collapse import feature_std, rankme
from bigssl.transfer.features import centre, column, decode_pixels, evaluating, forward_images, metadata, read_samples
from bigssl.transfer.knn import encode_labels, knn_accuracy


class _Share:
    """This rank's decoded images of a subset, and the labels of the whole subset.

    Every rank holds the same number of images, a multiple of an equal batch, filled up with repeats: under ZeRO-3 each
    forward is a collective of all ranks, so all must make the same number of them.
    """

    def __init__(self, index: DatasetIndex, *, limit: int, batch: int, size: int, label: str) -> None:
        samples = list(read_samples(index, limit))
        if not samples:
            raise DataError(f"probe: no samples in {display(index.url)}")
        self.count, world = len(samples), distributed.world()
        calls = -(-self.count // (world * batch))
        self.batch = -(-self.count // (world * calls))
        per_rank = calls * self.batch
        start = distributed.rank() * per_rank
        mine = [samples[i % self.count] for i in range(start, start + per_rank)]
        self.pixels = torch.from_numpy(np.stack([decode_pixels(sample, size) for sample in mine]))
        self.labels = column([s.key for s in samples], [metadata(s) for s in samples], label)

    def encode(self, model: PreTrainedModel, device: str | torch.device) -> Tensor:
        """float32 [count, D], the same on every rank, in the order of `labels`."""
        parts = [forward_images(model, pixels.to(device)) for pixels in self.pixels.split(self.batch)]
        return distributed.gather_rows(torch.cat(parts))[: self.count]


class KnnProbe:
    """kNN accuracy and collapse measures of a live image backbone on fixed subsets of bank and query shards.

    Images are decoded once, here. Labels are read for this measurement only. size: image side in pixels.
    """

    def __init__(self, settings: ProbeConfig, *, size: int) -> None:
        self.k = settings.k
        bank, queries = DatasetIndex.load(settings.bank), DatasetIndex.load(settings.queries)
        self._bank = _Share(bank, limit=settings.bank_limit, batch=settings.batch, size=size, label=settings.label)
        self._queries = _Share(queries, limit=settings.query_limit, batch=settings.batch, size=size,
                               label=settings.label)
        if self._bank.count < self.k:
            raise DataError(f"probe.k: value {self.k}, but probe.bank {settings.bank} gives {self._bank.count} images; "
                            f"allowed: 1 to {self._bank.count}")
        (self._bank_labels, self._query_labels), _ = encode_labels(self._bank.labels, self._queries.labels)

    def __call__(self, model: PreTrainedModel, device: str | torch.device) -> dict[str, float]:
        """{"knn": accuracy 0 to 1, "std": 1/√D when healthy and 0 when collapsed, "rankme": effective rank}.

        A collective: every rank calls it at the same step and gets the same numbers. The model, on `device`, is in
        eval mode inside and in its former mode afterwards.
        """
        with evaluating(model):
            bank, queries = self._bank.encode(model, device), self._queries.encode(model, device)
        health = {"std": feature_std(bank), "rankme": rankme(bank)}
        bank, queries = (features.cpu() for features in centre(bank, queries))
        return {"knn": knn_accuracy(bank, self._bank_labels, queries, self._query_labels, k=self.k), **health}
