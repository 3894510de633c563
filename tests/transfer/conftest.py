"""A small dataset of two designs of pictures with captions, and tiny transformers networks."""

import colorsys
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    ConvNextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
)

from bigssl.data.kinds import text
from bigssl.data.kinds.vocabularies.training import train_tokenizer
from bigssl.data.shards.index import build_index
from bigssl.nets.heads.base import Head
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Matrix, Scratch, joined
from bigssl.transfer.team import Team

CLASSES = {"Warm": ("red-ish", 0.0), "Cool": ("blue-ish", 0.6), "Fresh & New": ("green-ish", 0.33)}
SIZE = 32


def picture(hue: float, design: str, shift: int) -> bytes:
    """A coloured figure on white: a disc in one design, a square in the other."""
    colour = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, 0.8))
    image = Image.new("RGB", (40, 36), "white")
    box = (6 + shift, 6, 26 + shift, 26)
    draw = ImageDraw.Draw(image)
    draw.ellipse(box, colour) if design == "google" else draw.rectangle(box, colour)
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def write_shards(folder: Path, codes: range, shards: int = 2, *, lacking: str = "", of: range = range(0)) -> None:
    """Two designs of each code; the metadata field `lacking` is left out at the codes `of`."""
    folder.mkdir(parents=True)
    names = list(CLASSES)
    tars = [folder / f"part-{i}.tar" for i in range(shards)]
    for number, path in enumerate(tars):
        with tarfile.open(path, "w") as tar:
            for code in codes[number::shards]:
                name = names[code % len(names)]
                fine, hue = CLASSES[name]
                for design in ("google", "twitter"):
                    meta = {"code": str(code), "design": design, "category": name, "subcategory": fine}
                    meta = {key: value for key, value in meta.items() if code not in of or key != lacking}
                    members = {"png": picture(hue + code * 0.002, design, code % 5), "json": json.dumps(meta).encode(),
                               "txt": f"{fine[:-4]} thing number {code}".encode()}
                    for kind, data in members.items():
                        info = tarfile.TarInfo(f"{code:04d}-{design}.{kind}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    build_index(tars, folder)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with Scratch(tmp_path, Team()) as found:
        yield found


@pytest.fixture
def stored(scratch: Scratch) -> Callable[[torch.Tensor], Matrix]:
    """stored(rows): a matrix on disk with these rows."""
    return lambda rows: joined([scratch.store(iter([{"rows": rows}]))])["rows"]


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., None]:
    return write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train (60 codes, 120 samples) and val (21 codes, 42 samples)."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", range(60))
    write_shards(folder / "val", range(60, 81))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    words = [f"{fine} {fine[:-4]} {name} thing number {i}" for name, (fine, _) in CLASSES.items() for i in range(10)]
    train_tokenizer(words, 200, path)
    return text.load_tokenizer(path)


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """make_model("resnet" | "convnext" | "vit" | "bert" | "roberta" | "bart", seed=0, **changes of its configuration):
    a network whose every float tensor is away from its defaults."""
    words = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 64}
    kinds = {
        "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        "vit": ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         image_size=SIZE, patch_size=8),
        "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        "bert": BertConfig(**words),
        "roberta": RobertaConfig(**words, pad_token_id=tokenizer.pad_token_id),
        "bart": BartConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, d_model=16, encoder_layers=1,
                           decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                           decoder_ffn_dim=32, max_position_embeddings=64),
    }

    def make(kind: str, seed: int = 0, **changes: object) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModel.from_config(type(kinds[kind])(**kinds[kind].to_diff_dict() | changes))
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.05 * torch.rand(value.shape, generator=generator))
        return model

    return make


@pytest.fixture
def exported(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """exported("resnet" | "vit", **changes): a run folder with an export of such a network, a bert, heads of CLIP."""

    def export(kind: str, **changes: object) -> Path:
        generator = torch.Generator().manual_seed(0)
        into = {"image_projection": torch.randn(8, 16, generator=generator), "logit_scale": torch.tensor(2.0),
                "text_projection": torch.randn(8, 16, generator=generator)}  # fmt: skip
        heads = {"clip": Head("clip", {"image": "image", "text": "text"}, into)}
        backbones = {"image": make_model(kind, **changes), "text": make_model("bert", **changes)}
        export_run(tmp_path, backbones, {"image": ImageInput(32), "text": TextInput(tokenizer, 32)}, heads, {})
        return tmp_path

    return export


@pytest.fixture
def run(exported: Callable[..., Path]) -> Path:
    return exported("resnet")


@pytest.fixture
def cuda_autocast() -> Callable[[], AbstractContextManager[None]]:
    """cuda_autocast(): a context in which autocast on CUDA is on, as in a training there (no CUDA is needed)."""

    @contextmanager
    def on() -> Iterator[None]:
        torch.set_autocast_enabled("cuda", True)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)

    return on
