"""`bigssl embed` and `bigssl.load`: the same vectors by every way, whole after any kill."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bigssl
from bigssl.cli.main import main
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer import features
from bigssl.transfer.features import ahead, samples_at
from bigssl.transfer.inputs import AudioInput, SeriesInput
from bigssl.transfer.vectors import embedding
from bigssl.transfer.vectors.given import given_view
from bigssl.transfer.vectors.tables import about_of

EMOJI = Path(bigssl.__file__).parent / "demo" / "emoji" / "val"


@pytest.fixture
def run(run: Path) -> Path:
    """A finished run, of which this asks for no more than its export."""
    (run / "config.yaml").touch()
    return run


def arrays(out: Path) -> dict[str, Any]:
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


def command(run: Path, data: Path | str, out: Path, *more: str) -> list[str]:
    return ["embed", str(run), str(data), "--out", str(out), "--device", "cpu", *more]


def test_vectors_are_those_of_evaluation_with_keys_and_metadata_in_order(run: Path, tmp_path: Path) -> None:
    """Of shards, each sample once; and `load` makes the same of what a program holds."""
    words = ["--backbone", "image", "--batch", "7", "--limit", "30"]
    assert main(command(run, EMOJI, tmp_path / "x" / "v.npz", *words)) == 0
    found, samples = arrays(tmp_path / "x" / "v.npz"), list(samples_at(DatasetIndex.load(EMOJI), range(30)))
    meta = [json.loads(sample.fields["json"]) for sample in samples]
    assert found["keys"].tolist() == [sample.key for sample in samples]
    assert found["category"].tolist() == [each["category"] for each in meta]
    encoder = bigssl.load(run, "image", device="cpu")
    views = next(features.view_batches(samples, encoder.takes, batch=30))
    truth = features.encoder(encoder.model, "cpu")(views.arrays).numpy()
    assert found["vectors"].dtype == np.float32 and np.allclose(found["vectors"], truth, atol=1e-6)
    assert os.listdir(tmp_path / "x") == ["v.npz"]

    field = next(name for name in ("png", "webp", "jpg") if name in samples[0].fields)
    paths = [tmp_path / f"{number}.{field}" for number in range(4)]
    for path, sample in zip(paths, samples, strict=False):
        path.write_bytes(sample.fields[field])
    opened = Image.open(paths[3])
    mixed = encoder.embed([paths[0], str(paths[1]), Image.open(paths[2]), opened], batch=3)
    assert mixed.dtype == np.float32 and np.allclose(mixed, truth[:4], atol=1e-6)

    large = tmp_path / "large.jpg"  # it takes a while to be read, and more so upright
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(large, exif=exif)
    alone = encoder.embed([large])
    assert np.array_equal(encoder.embed([Image.open(large)] * 8), np.repeat(encoder.embed([large] * 8)[:1], 8, 0))
    with large.open("rb") as file:
        shared = [Image.open(file) for _ in range(4)]
        assert np.allclose(encoder.embed(shared), alone, atol=1e-6)


def test_a_folder_of_pictures_and_lines_of_text_are_embedded_without_packing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With labels from folders; values of different kinds are columns of different types."""
    for number, colour in enumerate(["red", "blue", "white"]):
        (tmp_path / "photos" / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(tmp_path / "photos" / f"c{number % 2}" / f"p{number}.png")
    assert main(command(run, tmp_path / "photos", tmp_path / "p.npz")) == 0
    found = arrays(tmp_path / "p.npz")
    assert found["keys"].tolist() == ["c0/p0", "c0/p2", "c1/p1"] and found["label"].tolist() == ["c0", "c0", "c1"]
    assert np.allclose(found["vectors"][2], bigssl.load(run, "image").embed([Image.new("RGB", (40, 30), "blue")])[0])

    rows = [{"text": "a red disc", "label": "a"}, {"text": "blue", "label": "b"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(run, tmp_path / "t.jsonl", tmp_path / "t.npz")) == 0
    found = arrays(tmp_path / "t.npz")
    assert found["label"].tolist() == ["a", "b"]
    assert np.allclose(found["vectors"], bigssl.load(run, "text").embed(["a red disc", "blue"]), atol=1e-6)
    (tmp_path / "t.jsonl").write_text((tmp_path / "t.jsonl").read_text().replace("blue", "grey"))
    capsys.readouterr()
    assert main(command(run, tmp_path / "t.jsonl", tmp_path / "t.npz")) == 2
    assert "was made of other data; allowed" in capsys.readouterr().err


def test_an_interrupted_command_ends_in_the_same_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at every step that leaves something: in the middle of a write, before and after an entry of progress,
    while the table is written, and when only the removal is left. To the byte, with each sample once."""
    monkeypatch.setattr(embedding, "SAVE", 2)
    whole, out = tmp_path / "whole.npz", tmp_path / "v.npz"
    words = ["--backbone", "image", "--batch", "5", "--limit", "33"]
    assert main(command(run, EMOJI, whole, *words)) == 0
    calls = 0

    class Killed(BaseException):
        pass

    def dying(real: Callable[..., Any], after: int, partly: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                for name in ("vectors", "rows.jsonl") if partly else ():
                    with (tmp_path / ".v.npz.partial" / name).open("ab") as file:
                        file.write(b"half a r")
                raise Killed
            return real(*args, **named)

        return call

    for what, after in [("_refuse_nan", 0), ("_refuse_nan", 1), ("_refuse_nan", 3), ("write_atomic", 0),
                        ("write_atomic", 1), ("_line", 11), ("write_table", 0), ("shutil", 0)]:  # fmt: skip
        calls = 0
        with monkeypatch.context() as patch:
            if what == "shutil":
                patch.setattr(embedding.shutil, "rmtree", dying(shutil.rmtree, after))
            else:
                patch.setattr(embedding, what, dying(getattr(embedding, what), after, partly=what == "_refuse_nan"))
            with pytest.raises(Killed):
                main(command(run, EMOJI, out, *words))
    (tmp_path / ".v.npz.4711.tmp").write_bytes(b"half a table")
    assert main(command(run, EMOJI, out, *words)) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".v.npz*"))


def test_what_was_made_of_something_else_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished file, and the beginning of one; the same command again leaves a finished file alone."""
    out, words = tmp_path / "v.npz", ["--backbone", "image", "--limit", "4"]
    assert main(command(run, EMOJI, out, *words)) == 0
    before = out.stat().st_mtime_ns
    assert main(command(run, EMOJI, out, *words)) == 0 and out.stat().st_mtime_ns == before
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command(run, EMOJI, tmp_path / "d.npz", *words)) == 130
    other_data = EMOJI.with_name("train")  # as many samples, of the same fields
    for begun, which in ((out, "exists and was made of"), (tmp_path / "d.npz", "is the beginning of a file made of")):
        assert main(command(run, other_data, begun, *words)) == 2
        assert f"{which} other data; allowed" in capsys.readouterr().err
    weights = run / "export" / "image" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refusals = [(words, "made of other weights"), ([*words[:3], "3"], "4 samples"), ([*words, "--batch", "2"], "batch")]
    for changed, said in refusals:
        assert main(command(run, EMOJI, out, *changed)) == 2 and said in capsys.readouterr().err
    data[-1] ^= 1
    weights.write_bytes(data)
    settings = weights.with_name("preprocessor_config.json")
    settings.write_text(settings.read_text().replace("0.5", "0.25"))
    assert main(command(run, EMOJI, out, *words)) == 2
    said = capsys.readouterr().err
    assert "made of other weights or settings; allowed" in said
    assert "image: the files beside it ask for pictures with mean [0.25, 0.25, 0.25]" in said
    with pytest.warns(UserWarning, match=r"ask for pictures with mean \[0.25"):
        bigssl.load(run, "image")
    other = tmp_path / "other.npz"
    np.savez(other, keys=np.arange(3))
    assert main(command(run, EMOJI, other, *words)) == 2
    assert "was not made by `bigssl embed`" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command(run, EMOJI, tmp_path / "w.npz", *words)) == 130
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(command(run, EMOJI, tmp_path / "w.npz", *words)) == 2
    assert "is the beginning of a file made of other weights" in capsys.readouterr().err
    assert main(command(run, EMOJI, tmp_path / "w.npz", *words, "--overwrite")) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_a_full_disk_is_named_and_gone_on_with(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "v.npz", ["--backbone", "image", "--limit", "40"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        assert main(command(run, EMOJI, out, *words)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert f"disk full: {out}" in said and "goes on" in said and not out.exists()
    assert main(command(run, EMOJI, out, *words)) == 0 and len(arrays(out)["keys"]) == 40


def test_columns_have_types_in_both_kinds_of_file(run: Path, tmp_path: Path) -> None:
    """Of values that lack in some rows, mixtures, and names that are ours."""
    rows = [
        {"text": "a", "n": 1, "x": 1, "ok": True, "keys": "k", "some": "s", "mixed": 1, "big": 2**70, "none": None,
         "id": 2**53 + 1, "few": 3, "both": 2**53 + 1, "meta.keys": 5, "seen": True},
        {"text": "b", "n": -2, "x": 0.5, "ok": False, "keys": "é", "mixed": ["u"], "big": 1, "none": None,
         "both": 0.5},
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    for number, row in enumerate(rows):
        (tmp_path / "data" / f"{number}.txt").write_text(str(row.pop("text")))
        (tmp_path / "data" / f"{number}.json").write_text(json.dumps(row))
    assert main(command(run, tmp_path / "data", tmp_path / "v.npz")) == 0
    found = arrays(tmp_path / "v.npz")
    assert found["n"].tolist() == [1, -2] and found["x"].tolist() == [1.0, 0.5] and found["ok"].dtype == bool
    assert found["meta.keys"].tolist() == ["k", "é"] and found["some"].tolist() == ["s", ""]
    assert found["mixed"].tolist() == ["1", '["u"]'] and found["big"].tolist() == [str(2**70), "1"]
    assert found["id"].tolist() == [str(2**53 + 1), ""], "float64 holds another number"
    assert found["both"].tolist() == [str(2**53 + 1), "0.5"] and found["meta.meta.keys"].tolist()[0] == 5
    np.testing.assert_array_equal(found["few"], [3, np.nan])
    assert "none" not in found and json.loads(str(found["about"])) == about_of(tmp_path / "v.npz")

    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    assert main(command(run, tmp_path / "data", tmp_path / "v.parquet")) == 0
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["keys"] == ["0", "1"] and table["n"] == [1, -2] and table["some"] == ["s", None]
    assert table["id"] == [2**53 + 1, None] and table["few"] == [3, None] and table["seen"] == [True, None]
    assert table["both"] == [str(2**53 + 1), "0.5"]
    assert np.array_equal(np.array(table["vectors"], np.float32), found["vectors"])
    assert about_of(tmp_path / "v.parquet") == about_of(tmp_path / "v.npz")


def test_what_cannot_be_embedded_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.txt").write_text("a line\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    cases = [
        (command(run, tmp_path / "t.txt", tmp_path / "v.npz", "--backbone", "image"), "has txt, but the network image"),
        (command(run / "export" / "image", tmp_path / "t.txt", tmp_path / "v.npz"), "no network for data with text"),
        (command(run, EMOJI, tmp_path / "v.npz"), "several networks fit"),
        (command(run, EMOJI, tmp_path / "v.npz", "--backbone", "imag"), "nearest: image"),
        (command(run, tmp_path / "empty", tmp_path / "v.npz"), "nothing to embed"),
        (command(run, tmp_path / "none", tmp_path / "v.npz"), "no such file or folder"),
        (command(tmp_path / "none", EMOJI, tmp_path / "v.npz"), "no such folder"),
        (command(run, EMOJI, tmp_path / "v.csv"), "allowed: a file .npz or .parquet"),
        (command(run, tmp_path / "photos", tmp_path / "v.npz"), "'a': undecodable image"),
        (command(run, EMOJI.parent, tmp_path / "v.npz"), "holds the datasets train, val"),
    ]
    for words, said in cases:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "v.npz").exists()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_open_picture_of_any_mode_is_seen_as_its_file(run: Path, mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(values, "RGBA" if mode in ("RGBA", "LA") else "CMYK").convert(
            "RGB" if mode == "P" else mode).convert(mode)  # fmt: skip
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture.save(path)
    takes = bigssl.load(run, "image").takes
    seen = given_view(takes, Image.open(path), 0)["image"]
    assert np.array_equal(seen, given_view(takes, path, 0)["image"])
    if mode in ("L", "RGB"):
        assert np.array_equal(seen, given_view(takes, np.asarray(picture), 0)["image"])


class Column:
    """As a table's column has its values: in their order, but by the labels of its rows."""

    ndim = 1

    def __init__(self, **values: Any) -> None:
        self._values = values
        self.keys = values.keys

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.values())

    def __getitem__(self, label: object) -> Any:
        return list(self._values.values())[{0: 2, 1: 0, 2: 1}[label]]  # type: ignore[index]


def test_vectors_are_in_the_order_of_a_loop_over_the_items(run: Path) -> None:
    text = bigssl.load(run, "text")
    column = Column(b="a red disc", c="blue", a="a green square on white")
    truth = text.embed(list(column), batch=2)
    assert np.array_equal(text.embed(column, batch=2), truth)  # type: ignore[arg-type]
    assert np.array_equal(text.embed(np.array(list(column)), batch=2), truth)  # type: ignore[arg-type]
    table: Any = Column(text=1)
    table.ndim = 2
    for items, said in [({"a", "b"}, "sorted"), ((w for w in "ab"), r"list\(items\)"), ({"a": "b"}, "its values"),
                        (table, "the column"), (np.array("a"), r"\[item\]")]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            text.embed(items)  # type: ignore[arg-type]


def test_items_of_another_kind_are_named_by_their_number(run: Path) -> None:
    image, text = bigssl.load(run, "image"), bigssl.load(run, "text")
    for encoder, items, said in [
        (image, ["/none.png"], "item 0: /none.png cannot be read"), (image, [np.zeros((4, 4, 3))], "float64"),
        (text, ["a", 3], "item 1: a int"), (text, "a text", "write \\[item\\]"), (image, [], "0 items"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            encoder.embed(items)
    with pytest.raises(ConfigError, match="several networks fit"):
        bigssl.load(run)
    with pytest.raises(DataError, match="channels"):
        given_view(SeriesInput(8, 2), np.zeros((8, 3)), 5)
    sound = AudioInput(16_000, 8)
    heard = given_view(sound, np.stack([np.ones(5), np.zeros(5)], 1), 0)
    assert heard["audio"].tolist() == [0.5] * 5 + [0.0] * 3 and heard["audio_mask"].sum() == 5


def test_what_is_drawn_ahead_comes_in_order_with_its_error() -> None:
    drawn: list[int] = []

    def items() -> Any:
        for number in range(10):
            drawn.append(number)
            yield number
            if number == 6:
                raise DataError("the seventh")

    seen: list[int] = []
    with pytest.raises(DataError, match="the seventh"):
        seen.extend(ahead(items))
    assert seen == list(range(7))
    stopped = ahead(items)
    assert next(stopped) == 0
    stopped.close()  # the thread ends with it
    count = len(drawn)
    assert count <= 7 + 5 and not torch.is_inference_mode_enabled()
