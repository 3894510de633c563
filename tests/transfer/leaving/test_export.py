"""An export is the trained weights, bit by bit, in what transformers loads, or it is not there."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from bigssl.nets.heads.base import Head
from bigssl.nets.norm import with_global_batch_norm
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.leaving import export
from bigssl.transfer.leaving.export import ExportError, export_run, load_backbone, load_head

Make = Callable[..., PreTrainedModel]


def write(folder: Path, backbones: Mapping[str, PreTrainedModel], heads: Mapping[str, Any] | None = None,
          meta: Mapping[str, Any] | None = None, **options: Any) -> None:
    """An export of backbones whose input does not matter here."""
    export_run(folder, backbones, {name: ImageInput(32) for name in backbones}, heads or {}, meta or {}, **options)


def same(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit", "bert", "roberta"])
def test_auto_model_gives_the_weights_bit_by_bit(kind: str, make_model: Make, tmp_path: Path) -> None:
    live = make_model(kind)
    write(tmp_path, {"net": live})
    loaded, report = AutoModel.from_pretrained(tmp_path / "export" / "net", output_loading_info=True)
    assert type(loaded) is type(live) and same(loaded, live.state_dict())
    assert not any(report.values()), report
    assert same(load_backbone(tmp_path / "export" / "net"), live.state_dict())


def test_live_network_with_global_batch_norm(make_model: Make, tmp_path: Path) -> None:
    live = with_global_batch_norm(make_model("resnet")).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(live, PreTrainedModel)
    write(tmp_path, {"net": live})
    loaded = AutoModel.from_pretrained(tmp_path / "export" / "net")
    assert same(loaded, live.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.allclose(loaded.eval()(pixels).last_hidden_state, live.eval()(pixels).last_hidden_state, atol=1e-5)


def test_state_dict_goes_before_live_weights_and_bf16_becomes_fp32(make_model: Make, tmp_path: Path) -> None:
    live, other = make_model("bert").bfloat16(), make_model("bert", seed=1)
    write(tmp_path, {"net": live}, states={"net": other.state_dict()})
    loaded = AutoModel.from_pretrained(tmp_path / "export" / "net")
    assert loaded.dtype == torch.float32 and same(loaded, other.state_dict())
    assert live.dtype == torch.bfloat16 and live.device.type == "cpu"


def test_weights_of_another_network_are_refused(make_model: Make, tmp_path: Path) -> None:
    state = dict(make_model("bert").state_dict())
    state["strange"] = state.pop("embeddings.LayerNorm.bias")
    with pytest.raises(ExportError, match="BertModel: lacking embeddings.LayerNorm.bias; not part of it strange"):
        write(tmp_path, {"net": make_model("bert")}, states={"net": state})
    assert not (tmp_path / "export").exists()


def test_heads_round_trip(make_model: Make, tmp_path: Path) -> None:
    head = {"image_projection": torch.randn(4, 16).bfloat16(), "logit_scale": torch.tensor(2.5)}
    write(tmp_path, {}, {"clip": Head("clip", {"image": "net"}, head, {"size": [3, 4]})})
    loaded = load_head(tmp_path / "export" / "heads" / "clip.safetensors")
    assert loaded._replace(tensors={}) == Head("clip", {"image": "net"}, {}, {"size": [3, 4]})
    assert loaded.tensors.keys() == head.keys()
    assert all(torch.equal(loaded.tensors[key], head[key].float()) for key in head)


def test_model_card_says_how_to_load_and_what_it_is(make_model: Make, tmp_path: Path) -> None:
    heads = {"clip": Head("clip", {}, {"logit_scale": torch.tensor(1.0)})}
    write(tmp_path, {"net": make_model("vit")}, heads, {"steps": 10, "losses": {"mlm": 3.0}, "odd": "a|b"})
    card = (tmp_path / "export" / "README.md").read_text()
    for text in ('AutoModel.from_pretrained("net")', "ViTModel", "| steps | 10 |", '{"mlm": 3.0}', "a\\|b", "clip"):
        assert text in card, text


@pytest.mark.parametrize(("owner", "where"), [(Head, "write"), (export, "_write_backbone"), (export, "fsync")])
def test_crash_midway_leaves_the_older_export(
    owner: Any, where: str, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_model("vit", seed=0), make_model("vit", seed=1)
    heads = {"clip": Head("clip", {}, {"logit_scale": torch.tensor(1.0)})}
    write(tmp_path, {"net": old}, heads)

    def crash(*args: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(owner, where, crash)
        write(tmp_path, {"net": new}, heads)
    assert same(load_backbone(tmp_path / "export" / "net"), old.state_dict())
    write(tmp_path, {"net": new})
    assert same(load_backbone(tmp_path / "export" / "net"), new.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export"]
    assert not (tmp_path / "export" / "heads").exists(), "left over from the older export"


def test_kill_between_the_two_renames_is_healed(make_model: Make, tmp_path: Path) -> None:
    write(tmp_path, {"net": make_model("vit")})
    (tmp_path / "export").rename(tmp_path / ".export.previous")
    export.recover(tmp_path)
    assert json.loads((tmp_path / "export" / "net" / "config.json").read_text())["model_type"] == "vit"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export"]


def test_absent_export_says_what_is_there(make_model: Make, tmp_path: Path) -> None:
    write(tmp_path, {"net": make_model("vit")})
    with pytest.raises(ExportError, match="there is: README.md, net"):
        load_backbone(tmp_path / "export" / "image")
    with pytest.raises(ExportError, match="no such folder"):
        load_backbone(tmp_path / "nowhere" / "export" / "image")


def test_file_holds_float32_under_the_names_of_the_state_dict(make_model: Make, tmp_path: Path) -> None:
    live = make_model("resnet")
    write(tmp_path, {"net": live})
    stored = load_file(tmp_path / "export" / "net" / "model.safetensors")
    assert stored.keys() == live.state_dict().keys()
    assert {value.dtype for value in stored.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("kind", ["vit", "bert", "roberta"])
def test_a_pooler_that_was_not_trained_is_left_out_and_missed(
    kind: str, make_model: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    live = make_model(kind)
    live.pooler.requires_grad_(False)  # type: ignore[union-attr, operator]
    write(tmp_path, {"net": live})
    kept = {key: value for key, value in live.state_dict().items() if not key.startswith("pooler.")}
    loaded, report = AutoModel.from_pretrained(tmp_path / "export" / "net", output_loading_info=True)
    assert set(report["missing_keys"]) == live.state_dict().keys() - kept.keys() == {"pooler.dense.weight",
                                                                                     "pooler.dense.bias"}
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in kept.items())
    stored = load_file(tmp_path / "export" / "net" / "model.safetensors")  # under names of transformers 4, for some
    assert len(stored) == len(kept) and not any("pooler" in key for key in stored)
    capfd.readouterr()
    ours = load_backbone(tmp_path / "export" / "net")
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in kept.items())
    assert capfd.readouterr() == ("", ""), "evaluation uses no pooler: nothing to warn of"


def test_weights_that_lack_more_than_a_pooler_are_refused(make_model: Make, tmp_path: Path) -> None:
    write(tmp_path, {"net": make_model("vit")})
    file = tmp_path / "export" / "net" / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != "layernorm.bias"}, file, {"format": "pt"})
    with pytest.raises(ExportError, match="net: weights lacking: layernorm.bias; run the training command again"):
        load_backbone(tmp_path / "export" / "net")


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_every_file_can_be_read_by_whom_the_umask_lets(umask: int, mode: int, make_model: Make, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path, {"net": make_model("resnet")}, {"clip": Head("clip", {}, {"logit_scale": torch.tensor(1.0)})})
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert {"export/net/model.safetensors", "export/heads/clip.safetensors"} < modes.keys()
    assert set(modes.values()) == {mode}, modes
