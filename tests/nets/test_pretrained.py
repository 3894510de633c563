"""`init_from`: whose weights a network begins with, and what is said of those that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.towers import Tower, check_backbone

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


def tower(name: str = "net", **fields: Any) -> Tower:
    return Tower(name, BackboneConfig(**({"type": "vit", "size": 32} | fields)), None)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an export of two networks of one type, and one of another."""
    for seed, name in enumerate(("image", "teacher")):
        torch.manual_seed(seed)
        tower(config=TINY).model.save_pretrained(tmp_path / "export" / name)
    small = {"embedding_size": 4, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    tower(type="resnet", config=small).model.save_pretrained(tmp_path / "export" / "map")
    (tmp_path / "export" / "README.md").write_text("# a run\n")
    return tmp_path


def test_a_run_or_its_export_stands_for_the_network_of_the_same_name_or_the_only_one_of_the_type(run: Path) -> None:
    for folder in (run, run / "export", run / "export" / "teacher"):
        begun = tower("teacher", init_from=str(folder))
        torch.manual_seed(1)
        assert equal(begun.model.state_dict(), tower(config=TINY).model.state_dict())
    assert tower("another", type="resnet", init_from=str(run)).begun.startswith(
        f"backbones.another.init_from: {run}/export/map: ")
    with pytest.raises(ConfigError, match="init_from: value .*: no config.json in it; allowed: .*image.*teacher"):
        check_backbone("another", BackboneConfig(type="vit", size=32, init_from=str(run)))


def test_all_that_is_there_is_taken_and_said(run: Path) -> None:
    begun = tower("image", init_from=str(run)).begun
    count = len(tower(config=TINY).model.state_dict())
    assert begun == (f"backbones.image.init_from: {run}/export/image: {count} of {count} tensors are taken")
    assert tower(config=TINY).begun == ""


def test_a_part_has_to_be_allowed_and_is_told_tensor_by_tensor(run: Path) -> None:
    """Fewer layers there, another size of picture here, a head there that the network has no place for."""
    folder = run / "export" / "image"
    whole = load_file(folder / "model.safetensors")
    before = tower(init_from=str(folder)).model.state_dict()
    kept = {name: value for name, value in whole.items() if "layers.1.layernorm_before" not in name
            and "layer.1.layernorm_before" not in name}  # fmt: skip
    assert len(whole) - len(kept) == 2
    save_file(kept | {"classifier.weight": torch.ones(3, 16)}, folder / "model.safetensors", {"format": "pt"})
    fields = {"init_from": str(folder), "size": 64, "config": {"image_size": 64}}
    with pytest.raises(ConfigError) as caught:
        tower(**fields)
    for words in ("init_from: value", "1 of", "other shapes (embeddings.position_embeddings: [1, 17, 16] in place of "
                  "[1, 65, 16])", "2 of", "layernorm_before.bias", "--allow-partial"):  # fmt: skip
        assert words in str(caught.value), words
    torch.manual_seed(3)
    part = tower(**fields, allow_partial=True)
    torch.manual_seed(3)
    mine = part.model.state_dict()
    assert equal(mine, tower(**fields, allow_partial=True).model.state_dict()), "fresh ones are seeded"
    fresh = {"embeddings.position_embeddings", "layers.1.layernorm_before.weight", "layers.1.layernorm_before.bias"}
    assert equal({n: v for n, v in mine.items() if n not in fresh}, {n: v for n, v in before.items() if n not in fresh})
    assert f"{len(mine) - 3} of {len(mine)} tensors are taken" in part.begun
    assert "made anew since it lacks them: " in part.begun and "layernorm_before.weight" in part.begun
    assert "shapes differ: embeddings.position_embeddings" in part.begun
    assert "in it, not used here: classifier.weight; with another image_size 64 in place of 32" in part.begun


def test_fields_under_config_replace_those_of_the_folder_and_unknown_ones_are_named(run: Path) -> None:
    folder = str(run / "export" / "image")
    other = tower(init_from=folder, config={"hidden_act": "relu", "num_attention_heads": 4, "hidden_size": 16})
    assert other.model.config.hidden_act == "relu"
    assert other.begun.endswith("; with another hidden_act relu in place of gelu, num_attention_heads 4 in place of 2 "
                                "(from backbones.net.config) they may compute something else")  # fmt: skip
    assert json.loads((Path(folder) / "config.json").read_text())["hidden_act"] == "gelu"
    with pytest.raises(ConfigError, match="config.hidden_sise: unknown field of ViTConfig.*hidden_size"):
        tower(init_from=folder, config={"hidden_sise": 8})


def test_weights_that_are_no_numbers_are_refused(run: Path) -> None:
    file = run / "export" / "image" / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.cls_token"][0, 0, 3] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"init_from: value .*: 1 tensors .* NaN .* \(embeddings.cls_token\)"):
        tower(init_from=str(file.parent), allow_partial=True)


def test_a_run_folder_of_before_the_name_is_read() -> None:
    assert BackboneConfig(**{"type": "vit", "size": 8, "pretrained": "a/b/c"}).init_from == "a/b/c"
    with pytest.raises(ValueError, match="pretrained"):
        BackboneConfig(**{"type": "vit", "size": 8, "pretrained": "a/b/c", "init_from": "a/b/c"})
