"""The online probe: its numbers are those of the offline functions, on one rank and on several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from bigssl.config.evaluate import ProbeConfig
from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.collapse import feature_std, rankme
from bigssl.transfer.features import centre, column, image_batches, network, samples_at
from bigssl.transfer.features import chosen as chosen_numbers
from bigssl.transfer.knn import encode_labels, knn_accuracy
from bigssl.transfer.probe import KnnProbe

Make = Callable[..., PreTrainedModel]
SIZE = 32


def settings(shards: Path, **changes: object) -> ProbeConfig:
    values = {"every": 1, "bank": str(shards / "train"), "queries": str(shards / "val"), "k": 5, "batch": 16,
              "label": "category"}
    return ProbeConfig.model_validate(values | changes)


def encoded(model: PreTrainedModel, url: str, limit: int) -> tuple[torch.Tensor, list[str]]:
    """Features and categories of the subset that the scorecard would take."""
    index = DatasetIndex.load(url)
    batches = list(image_batches(samples_at(index, chosen_numbers(index, limit)), size=SIZE, batch=200))
    encode = network(model, "cpu")
    return (torch.cat([encode(batch.pixels) for batch in batches]),
            [label for batch in batches for label in column(batch.keys, batch.meta, "category")])


@pytest.mark.parametrize("limits", [{}, {"bank_limit": 37, "query_limit": 11}])
def test_equals_offline_evaluation(limits: dict[str, int], make_model: Make, shards: Path) -> None:
    model = make_model("resnet")
    chosen = settings(shards, **limits)
    found = KnnProbe(chosen, size=SIZE)(model, "cpu")
    (bank, known), (queries, asked) = (
        encoded(model, url, limit)
        for url, limit in ((chosen.bank, chosen.bank_limit), (chosen.queries, chosen.query_limit))
    )
    (labels, wanted), _ = encode_labels(known, asked)
    vectors, query_vectors = centre(bank, queries)
    assert found["knn"] == pytest.approx(knn_accuracy(vectors, labels, query_vectors, wanted, k=5))
    assert found["std"] == pytest.approx(feature_std(bank), rel=1e-4)
    assert found["rankme"] == pytest.approx(rankme(bank), rel=1e-3)


def test_training_goes_on_as_if_it_had_not_been_there(make_model: Make, shards: Path) -> None:
    model = make_model("resnet").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    KnnProbe(settings(shards), size=SIZE)(model, "cpu")
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_collapsed_network_is_seen(make_model: Make, shards: Path) -> None:
    model = make_model("vit")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.zero_() if "layernorm.weight" in name else None
        model.layernorm.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    found = KnnProbe(settings(shards), size=SIZE)(model, "cpu")
    assert found["std"] == pytest.approx(0.0, abs=1e-5) and found["rankme"] == pytest.approx(1.0, abs=1e-2)


def test_more_neighbours_than_images_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="probe.k: value 5, but .* gives 4 images"):
        KnnProbe(settings(shards, bank_limit=4), size=SIZE)


def test_unknown_label_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="no metadata field 'colour'"):
        KnnProbe(settings(shards, label="colour"), size=SIZE)


def probed(folder: Path, chosen: ProbeConfig) -> dict[str, Any]:
    """One rank: the probe's numbers, and the sizes of its forward passes."""
    torch.distributed.init_process_group("gloo")
    model = AutoModel.from_pretrained(folder)
    forwards: list[int] = []
    model.register_forward_hook(lambda _, __, output: forwards.append(len(output.last_hidden_state)))
    return {**KnnProbe(chosen, size=SIZE)(model, "cpu"), "forwards": forwards}


@pytest.mark.distributed
def test_two_ranks_give_the_numbers_of_one(
    make_model: Make, shards: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    model = make_model("resnet")
    model.save_pretrained(tmp_path / "model")
    chosen = settings(shards, bank_limit=53, query_limit=21)
    found = ranks(probed, 2, tmp_path / "model", chosen)
    assert found[0] == found[1] and found[0].pop("forwards") == found[1].pop("forwards") == [14, 14, 11]
    assert found[0] == pytest.approx(KnnProbe(chosen, size=SIZE)(model, "cpu"), rel=1e-4)
