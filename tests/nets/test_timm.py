"""`init_from` a folder of timm: the same features as timm's network has, or a refusal."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.towers import Tower

STAND_IN = Path(__file__).parents[1] / "transfer" / "leaving" / "without_torchvision.py"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet", {}), "resnet50": ("resnet", {}),
    "convnext_atto": ("convnext", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "conv_mlp": False}),
    "convnextv2_atto": ("convnextv2", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "conv_mlp": False}),
    "vit_tiny_patch16_224": ("vit", {"depth": 2, "img_size": 32}),
    "deit_tiny_distilled_patch16_224": ("deit", {"depth": 2, "img_size": 32}),
    "resnet50d": ("resnet", {}), "seresnet18": ("resnet", {}),
    "vit_relpos_small_patch16_224": ("vit", {"depth": 1, "img_size": 32}),
}  # fmt: skip
REFUSED = ("resnet50d", "seresnet18", "vit_relpos_small_patch16_224")
SAVING = """
import json, sys
import numpy as np, timm, torch
for name, arguments in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments)
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        torch.nn.init.normal_(norm.running_mean, std=.1); torch.nn.init.uniform_(norm.running_var, .5, 2)
    for parameter in model.parameters():
        parameter.data += .02 * torch.randn_like(parameter)
    timm.models.save_for_hf(model, sys.argv[2] + "/" + name, model_args=arguments, safe_serialization=True)
    with torch.no_grad():
        found = model.eval().forward_features(torch.from_numpy(np.load(sys.argv[2] + "/pixels.npy")))
    if found.ndim == 3:
        found = found[:, model.num_prefix_tokens :].transpose(1, 2)[..., None]
    np.save(sys.argv[2] + f"/{name}.npy", found.mean((2, 3)).numpy())
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks as timm writes them, made by another process, and the features that they have there."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm (pip install --no-deps timm)")
    root = tmp_path_factory.mktemp("timm")
    np.save(root / "pixels.npy", np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32))
    (root / "saving.py").write_text(SAVING)
    wanted = json.dumps({name: arguments for name, (_, arguments) in KINDS.items()})
    subprocess.run([sys.executable, STAND_IN, "-I", root / "saving.py", wanted, root], check=True, timeout=300)
    return root


def tower(folder: Path, kind: str, **fields: Any) -> Tower:
    return Tower("image", BackboneConfig(type=kind, size=32, init_from=str(folder), **fields), None)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in REFUSED])
def test_the_features_are_those_of_timm(name: str, folders: Path) -> None:
    begun = tower(folders / name, KINDS[name][0]).eval()
    picture = torch.from_numpy(np.load(folders / "pixels.npy"))
    with torch.no_grad():
        output = begun.model(pixel_values=picture).last_hidden_state
    found = output.mean((2, 3)) if output.ndim == 4 else output[:, 2 if name.startswith("deit") else 1 :].mean(1)
    wanted = torch.from_numpy(np.load(folders / f"{name}.npy"))
    assert torch.allclose(found, wanted, atol=2e-5 * wanted.abs().max().item()), (found - wanted).abs().max()
    assert "; in it, not used here: " in begun.begun
    assert ("normalised by mean" in begun.begun) == (name != "vit_tiny_patch16_224"), "which learns from mean .5"


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_in_the_network_is_refused(name: str, folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"image.init_from: value .*timm's .* (has no place|is no (resnet|vit))"):
        tower(folders / name, KINDS[name][0])


def test_another_type_or_a_part_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timm's resnet18 is no vit"):
        tower(folders / "resnet18", "vit")
    with pytest.raises(ConfigError, match="no network of type 'swin' is read out of a folder of timm; allowed: convn"):
        tower(folders / "resnet18", "swin")
    whole = load_file(folders / "resnet18" / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders / "resnet18" / "config.json").read_bytes())
    save_file({n: v for n, v in whole.items() if n != "layer2.0.bn1.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="1 of 120 tensors of ResNetModel are not in it .*--allow-partial"):
        tower(tmp_path, "resnet")
    part = tower(tmp_path, "resnet", allow_partial=True)
    assert "119 of 120 tensors are taken; made anew since it lacks them: encoder.stages.1.layers.0" in part.begun
