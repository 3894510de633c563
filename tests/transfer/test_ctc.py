"""Speech that is tones: what is heard, what is not, and what is refused."""

import io
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import TypeAdapter

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.towers import Tower
from bigssl.transfer.bench import Bench
from bigssl.transfer.discovery import discover_evaluations
from bigssl.transfer.inputs import input_of
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.scorecard import score

MADE = runpy.run_path(str(Path(__file__).parent / "made" / "speech.py"))
QUICK = {"seeds": 1, "fractions": [1.0], "epochs": 2, "lr": 0.05, "fit_batch": 8}


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower("audio", BackboneConfig(type="wav2vec2", rate=1000, length=1000, config={
        "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}), None)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tower: Tower) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    MADE["make"](folder)
    export_run(folder, {"audio": tower.model}, {"audio": input_of(tower)}, {}, {})
    return folder


def section(data: Path, **changes: Any) -> Any:
    found = {"task": "ctc", "train": str(data / "train"), "queries": str(data / "val")} | QUICK
    return TypeAdapter(discover_evaluations()["ctc"]).validate_python(found | changes)


def rows(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return score(data, {"mine": section(data, **changes)}, seed=0, out=out)


def packed(folder: Path, texts: dict[str, str], field: str = "") -> str:
    """Sounds that say these texts; the text in txt, or in a field of the json."""

    def fields(text: str) -> dict[str, bytes]:
        buffer = io.BytesIO()
        sound = MADE["say"](text, np.random.default_rng(0)) if text else np.zeros(200, np.float32)
        soundfile.write(buffer, sound, MADE["RATE"], format="flac")
        said = {field: text, "speaker": "one"}
        return {"flac": buffer.getvalue()} | ({"json": json.dumps(said).encode()} if field else {"txt": text.encode()})

    pack([Item(key, key, lambda text=text: fields(text)) for key, text in texts.items()], folder, name="x")
    return str(folder)


def test_tones_are_learnt_from_spectra(data: Path, tmp_path: Path) -> None:
    card = rows(data, tmp_path, epochs=9)["tasks"]
    assert list(card) == ["mine/wer", "mine/cer"]
    for row in card.values():
        assert row["queries"] == 16 and row["symbols"] == 6 and not row["higher_is_better"]
        assert row["raw_name"] == "log-mel frames" and row["raw"] < 0.3 < row["blind"] <= 1


@pytest.mark.parametrize("tune", ["head", "all"])
def test_only_what_should_is_trained(tune: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, dict[str, torch.Tensor]]] = []
    network = Bench.network

    def noted(self: Bench, *args: Any) -> Any:
        model = network(self, *args)
        given.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(Bench, "network", noted)
    weights = {path: path.read_bytes() for path in (data / "export").rglob("*.safetensors")}
    rows(data, tmp_path, tune=tune)
    assert len(given) == 2
    for model, before in given:
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(moved) == (tune == "all")
        assert tune == "head" or {"feature_extractor.conv_layers.0.conv.weight", *(
            name for name in before if "layers.0.attention" in name and name.endswith("weight"))} <= moved  # fmt: skip
    assert weights == {path: path.read_bytes() for path in (data / "export").rglob("*.safetensors")} != {}


def test_what_is_not_heard_whole_is_said(data: Path, tmp_path: Path) -> None:
    train = packed(tmp_path / "train", {"a": "ab", "b": "", "c": "abcdeabcdeab", "d": "Ab"}, field="said")
    test = packed(tmp_path / "test", {"a": "AB", "b": "ab e", "c": "ab e cd ab cd"}, field="said")
    card = rows(data, tmp_path, train=train, queries=test, label="said", item="speaker")
    assert [note for note in card["notes"] if note.startswith("evaluate.mine")] == [
        "evaluate.mine.train: 1 of 4 sounds are longer than the 1 s that the backbone takes: they are not learnt from.",
        "evaluate.mine.queries: 1 of 3 sounds are longer than the 1 s that the backbone takes: they are judged by "
        "their beginning.",
        "evaluate.mine.train: up to 1 of 4 sounds are not learnt from: they have fewer frames than CTC needs for their "
        "transcripts, or are cut.",
    ]
    for row, blind in (("wer", 5 / 8), ("cer", 13 / 19)):
        task = card["tasks"][f"mine/{row}"]
        assert task["blind_name"] == "always 'ab'" and task["blind"] == pytest.approx(blind)
        assert task["symbols"] == 5 and task["stderr"] is None, "no training text has a space; there is one speaker"


def test_what_cannot_be_learnt_is_refused(data: Path, tower: Tower, tmp_path: Path) -> None:
    silent = packed(tmp_path / "silent", {"a": "", "b": ""})
    said = packed(tmp_path / "said", {"a": "ab"}, field="said")
    for changes, words in (
        ({"train": silent}, "evaluate.mine.train: 2 transcripts, all of them empty; allowed: some with words"),
        ({"queries": silent}, "evaluate.mine.queries: 2 transcripts, all of them empty"),
        ({"train": packed(tmp_path / "dense", {"a": "a" * 12})}, "none of 1 sounds to learn from has as many frames"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            rows(data, tmp_path, **changes)

    def check(**changes: Any) -> None:
        mine = section(data, **changes)
        mine.check(Checked("evaluate.mine", mine, {"audio": tower}, {}))

    check()
    check(train=said, queries=packed(tmp_path / "more", {"a": "b"}, field="said"), label="said")
    with pytest.raises(
        ConfigError, match=r"evaluate.mine.train: .*sample 'a'|evaluate.mine.train: .*json is no document"
    ):
        check(train=said)
    with pytest.raises(ConfigError, match="evaluate.mine.label: value 'words' is not in the metadata"):
        check(train=said, label="words")
