"""The online probe: the evaluations of the scorecard on the live networks, on one rank and on several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.evaluate import Evaluation
from bigssl.data.errors import DataError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.order.stream import Stream
from bigssl.nets.heads.base import Head, MaskedLanguageHead
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.heads.replacing import DiscriminatorHead
from bigssl.nets.remaking.autoencoder import AutoencoderRemaker
from bigssl.report.metrics import Measure
from bigssl.transfer.discovery import discover_evaluations, evaluation_union
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.probe import LiveProbe
from bigssl.transfer.scorecard import score
from bigssl.transfer.subjects import Live, Subject
from bigssl.transfer.team import Team

Make = Callable[..., PreTrainedModel]
parse: Callable[[Any], dict[str, Evaluation]] = TypeAdapter(dict[str, evaluation_union()]).validate_python
ROOT = Path(__file__).parents[2]
DOCUMENTS = {"neighbours", "pairs"}  # tasks that captions of a sentence cannot serve
SIZE, SIDE = 32, 4  # of pictures, and of the last map of the network


def knn(shards: Path, **changes: object) -> dict[str, Evaluation]:
    values = {"task": "knn", "bank": str(shards / "train"), "queries": str(shards / "val"), "k": 5, "batch": 16,
              "label": "category"}  # fmt: skip
    return parse({"near": values | changes})


def everything(shards: Path) -> dict[str, Evaluation]:
    """Each evaluation whose preset is of pictures or texts, on a few of ours."""
    limits = {"query_limit": 25, "bank_limit": 53, "caption_limit": 40}
    found = {}
    for task, kind in discover_evaluations().items():
        urls = {name: Path(value) for name, value in kind.preset.items() if str(value).startswith("bigssl/demo/")}
        if kind.probes and urls and {url.parent.name for url in urls.values()} <= {"emoji", "text"}:
            whole = task in DOCUMENTS
            ours = {name: str(ROOT / url if whole else shards / url.name) for name, url in urls.items()}
            some = {name: most for name, most in limits.items() if name in kind.model_fields and not whole}
            found[f"my-{task}"] = kind.preset | some | ours | {"task": task, "batch": 8}
    return parse(found)


def prepared(live: Live, sections: dict[str, Evaluation]) -> LiveProbe:
    probe = LiveProbe(sections, live, team=Team(), seed=4, device="cpu")
    probe.prepare()
    return probe


def probe_of(model: PreTrainedModel, sections: dict[str, Evaluation]) -> LiveProbe:
    live = Live([Subject("image", {"trained": model}, ImageInput(SIZE), 16)])
    return prepared(live, sections)


Towers = tuple[dict[str, PreTrainedModel], dict[str, ImageInput | TextInput], dict[str, Head]]


@pytest.fixture
def towers(make_model: Make, tokenizer: PreTrainedTokenizerFast) -> Towers:
    models = {"image": make_model("resnet"), "text": make_model("bert")}
    torch.manual_seed(1)
    mlm = MaskedLanguageHead(models["text"].get_input_embeddings().weight)  # type: ignore[arg-type]
    into = {name: torch.randn(8, 16) for name in ("image_projection", "text_projection")}
    words = {name: value.detach().clone() for name, value in mlm.named_parameters() if name != "weight"}
    pooled, judge = PooledHead(16, 2), DiscriminatorHead(16)
    told = {name: {key: value.detach() for key, value in head.named_parameters()}
            for name, head in (("next_sentence", pooled), ("replaced_token", judge))}  # fmt: skip
    drawn = AutoencoderRemaker(dim=models["image"].config.hidden_sizes[-1], side=SIDE, size=SIZE, width=16)
    heads = {"clip": Head("clip", {"image": "image", "text": "text"}, into),
             "mlm": Head("mlm", {"text": "text"}, words),
             **{name: Head(name, {"text": "text"}, tensors) for name, tensors in told.items()},
             "pictures": Head(drawn.kind, {"image": "image"}, drawn.learnt(), drawn.settings)}
    return models, {"image": ImageInput(SIZE), "text": TextInput(tokenizer, 24)}, heads


def live_of(towers: Towers) -> Live:
    models, inputs, heads = towers
    return Live([Subject(name, {"trained": model}, inputs[name], 16) for name, model in models.items()], lambda: heads)


def test_every_evaluation_probes_what_the_scorecard_would_find(towers: Towers, shards: Path, tmp_path: Path) -> None:
    models, inputs, heads = towers
    export_run(tmp_path, models, inputs, heads, {})
    card = score(tmp_path, everything(shards), seed=4)
    probe = prepared(live_of(towers), everything(shards))
    for _ in range(2):  # what is kept from the first time is as good the second time
        found = probe()
        for name, task in card["tasks"].items():
            assert found.pop(f"probe/{name}") == pytest.approx(task["trained"], rel=1e-5), name
        assert found == pytest.approx({
            f"health/{backbone}/{name}": value
            for backbone, health in card["health"].items() for name, value in health["trained"].items()
            if name != "samples"
        }, rel=1e-4)  # fmt: skip
    assert probe.measures == {f"probe/{name}": Measure(task["unit"], "") for name, task in card["tasks"].items()}


def test_samples_are_read_once_and_before_the_first_probe(
    towers: Towers, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = prepared(live_of(towers), everything(shards))

    def gone(*args: object) -> None:
        raise OSError("the shards are gone")

    monkeypatch.setattr(Stream, "read", gone)
    for module in ("features", "bench", "texts.documents", "texts.drawn", "texts.passages"):
        monkeypatch.setattr(f"bigssl.transfer.{module}.samples_at", gone)
    assert probe() == probe()


def test_preparing_makes_no_forward_pass(towers: Towers, shards: Path) -> None:
    passes: list[str] = []
    for name, model in towers[0].items():
        model.register_forward_hook(lambda *_, name=name: passes.append(name))
    probe = prepared(live_of(towers), everything(shards))
    assert not passes
    probe()
    assert set(passes) == {"image", "text"}


def test_networks_of_two_tokenizers_are_asked_in_tokens_of_their_own(
    make_model: Make, tokenizer: PreTrainedTokenizerFast, shards: Path
) -> None:
    """After a network that reads the same documents in other tokens, the loss is the one that it has alone."""
    demo = load_tokenizer(ROOT / "bigssl" / "demo" / "tokenizer.json")
    kinds = {"small": tokenizer, "demo": demo}
    models = {name: make_model("bert", vocab_size=len(words)) for name, words in kinds.items()}
    heads = {name: Head("mlm", {"text": name}, {key: value.detach() for key, value in MaskedLanguageHead(
        model.get_input_embeddings().weight).named_parameters() if key != "weight"})  # type: ignore[arg-type]
        for name, model in models.items()}  # fmt: skip
    asked = parse({name: {"task": "language", "backbone": name, "head": name, "bank": str(shards / "train"),
                          "queries": str(shards / "val"), "query_limit": 9} for name in kinds})  # fmt: skip

    def found(*names: str) -> dict[str, float]:
        live = Live([Subject(n, {"trained": models[n]}, TextInput(kinds[n], 24), 16) for n in names], lambda: heads)
        return prepared(live, {name: asked[name] for name in names})()

    assert found("small", "demo") == found("small") | found("demo")


def test_training_goes_on_as_if_it_had_not_been_there(towers: Towers, shards: Path) -> None:
    models = [model.train() for model in towers[0].values()]
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    generator = torch.get_rng_state()
    prepared(live_of(towers), everything(shards))()
    assert torch.equal(torch.get_rng_state(), generator) and torch.is_grad_enabled()
    for model, state in zip(models, before, strict=True):
        assert all(module.training for module in model.modules())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_it_sees_the_network_as_it_is_now(make_model: Make, shards: Path) -> None:
    model = make_model("vit")
    probe = probe_of(model, knn(shards))
    healthy = probe()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.zero_() if "layernorm.weight" in name else None
        model.layernorm.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    collapsed = probe()
    assert collapsed["health/image/std"] < 1e-5 < 0.01 < healthy["health/image/std"]
    assert collapsed["health/image/rankme"] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("changes, message", [
    ({"bank_limit": 4}, "probe.near.k: value 5, but the bank has 4 samples"),
    ({"label": "colour"}, "no metadata field 'colour'"),
])
def test_what_cannot_be_probed_is_known_at_once(
    changes: dict, message: str, make_model: Make, shards: Path
) -> None:
    with pytest.raises(DataError, match=message):
        probe_of(make_model("resnet"), knn(shards, **changes))


def probed(folder: Path, towers: Towers, shards: Path, sections: dict[str, Evaluation]) -> dict[str, Any]:
    """One rank: the probe's numbers, and how many forward passes it made."""
    torch.distributed.init_process_group("gloo")
    models = {name: AutoModel.from_pretrained(folder / name) for name in towers[0]}
    passes = dict.fromkeys(models, 0)

    def count(name: str) -> None:
        torch.distributed.barrier()  # as ZeRO-3 would: a rank that makes fewer passes hangs the others
        passes[name] += 1

    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: count(name))
    probe = prepared(live_of((models, *towers[1:])), sections)
    return {**probe(), "passes": passes}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_give_the_numbers_of_one_in_as_many_passes_each(
    world: int, towers: Towers, shards: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    for name, model in towers[0].items():
        model.save_pretrained(tmp_path / name)
    alone = prepared(live_of(towers), everything(shards))()
    found = ranks(probed, world, tmp_path, towers, shards, everything(shards), timeout=120)
    assert all(each == found[0] for each in found) and min(found[0].pop("passes").values()) > 3
    assert found[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.distributed
def test_a_rank_without_samples_makes_its_passes(
    towers: Towers, shards: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    for name, model in towers[0].items():
        model.save_pretrained(tmp_path / name)
    sections = knn(shards, query_limit=1)
    alone = prepared(live_of(towers), sections)()
    for each in ranks(probed, 2, tmp_path, towers, shards, sections, timeout=120):
        assert each.pop("passes") == {"image": 5, "text": 0}  # 60 pictures of the bank in batches of 16, and a query
        assert each == pytest.approx(alone, rel=1e-4)


def half_readable(folder: Path, towers: Towers, sections: dict[str, Evaluation]) -> str:
    torch.distributed.init_process_group("gloo")
    try:
        prepared(live_of(towers), sections)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_what_one_rank_cannot_read_ends_all(
    towers: Towers, shards: Path, tmp_path: Path, ranks: Callable[..., list[Any]], make_shards: Callable[..., None]
) -> None:
    """The last samples, which only the last rank reads, have no label."""
    folder = tmp_path / "unlabelled"
    make_shards(folder, range(4), shards=1, lacking="category", of=range(3, 4))
    sections = knn(shards, queries=str(folder))
    texts = ranks(half_readable, 2, tmp_path, towers, sections, timeout=60)
    assert texts[0] == texts[1] and "sample '0003-google': no metadata field 'category'" in texts[0]
