"""docs/extend.md does what it says: its files are written beside ours and used as a developer would use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extend.md"
FILES = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S))
OBJECTIVE, INPUT = "bigssl/objectives/latent.py", "bigssl/transfer/inputs/table.py"
MODALITY = "bigssl/nets/modality/table.py"
EVALUATION = "bigssl/transfer/tasks/alignment.py"
BESIDE = """
import sys
import bigssl.objectives, bigssl.transfer.tasks
bigssl.objectives.__path__.append(sys.argv[1] + "/bigssl/objectives")
bigssl.transfer.tasks.__path__.append(sys.argv[1] + "/bigssl/transfer/tasks")
"""
RECIPE = {
    "name": "latent", "steps": 4, "precision": "fp32", "log_every": 2,
    "objective": {"name": "latent", "source": "emoji", "hidden": 16, "dim": 8},
    "backbones": {"image": {"type": "resnet", "size": 16, "config": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}}},
    "data": {"workers": 0, "sources": {"emoji": {"url": "bigssl/demo/emoji/train"}}},
    "batch": {"size": 16}, "checkpoint": {"every": 4},
    "evaluate": {"views": {"task": "alignment", "backbone": "image_slow", "queries": "bigssl/demo/emoji/val",
                           "pair": "code"}},
}  # fmt: skip


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with the page's new files, as they would lie in the repository."""
    for name in (OBJECTIVE, EVALUATION):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(FILES[name])
    return tmp_path


def run(folder: Path, code: str, *arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BESIDE + code, str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_page_has_what_it_speaks_of() -> None:
    assert set(FILES) == {OBJECTIVE, MODALITY, INPUT, EVALUATION}
    for path in re.findall(r"`((?:bigssl|tests|launch)/[\w/.]+)`", PAGE.read_text()):
        assert (ROOT / path).exists(), path


def test_the_pretext_trains_exports_and_is_evaluated_by_the_evaluation(beside: Path) -> None:
    (beside / "my.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(beside / "run")}))
    code = """
from bigssl import train
from bigssl.cli.main import main
sys.exit(main(["config", "check", sys.argv[2]]) or train.main(["--config", sys.argv[2]]))
"""
    shown = run(beside, code, str(beside / "my.yaml"))
    for said in ("fits: 1 ranks", "exported image, image_slow", "alignment of views", "cosine"):
        assert said in shown


@pytest.mark.distributed
def test_contract_and_evaluations_are_tested_of_files_that_they_have_never_seen(beside: Path) -> None:
    """In one process, and on ranks at the hardest cell only: all of ours were at the others."""
    chosen = "alignment or latent and not test_a_nan and (zero3-threshold0-2ranks-fp32 or not plain_loop)"
    code = "import pytest; sys.exit(pytest.main(['-v', '-p', 'no:cacheprovider', *sys.argv[2:]]))"
    shown = run(beside, code, "tests/objectives", "tests/transfer", "-k", chosen)
    passed = re.findall(r"^tests/(\w+)/\S+ PASSED", shown, re.M)
    assert passed.count("objectives") >= 12 and passed.count("transfer") >= 2 and "failed" not in shown


def test_the_modality_gives_views_and_features() -> None:
    """Each block at the end of its file, where it is to stand."""
    code = """
import io, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from transformers import VideoMAEConfig, VideoMAEModel
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.nets.modality import table
from bigssl.transfer.inputs import table as inputs
exec(sys.argv[1], vars(table))
exec(sys.argv[2], vars(inputs))
decode.FIELDS["video"] = ("video.npy",)
row, taken, config = table.MODALITIES["video"], inputs.INPUTS["video"](4, 16), SimpleNamespace(frames=4, side=16)
network = VideoMAEConfig(**row.settings("backbones.net", config, None, {}), patch_size=8, tubelet_size=2,
                         hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
model = VideoMAEModel(network).eval()
def sample(pictures):
    out = io.BytesIO()
    np.save(out, pictures)
    return Sample("s", {"video.npy": out.getvalue()}, 0, 0, "x.tar", "t")
pictures = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
folder = Path(tempfile.mkdtemp())
taken.write(folder)
view = inputs.INPUTS["video"].read(folder).view(sample(pictures))
batch = {name: table.torch.from_numpy(each)[None] for name, each in view.items()}
hidden, features = row.hidden(model, batch), row.features(model, batch)
trial = model(**row.trial(config, None)).last_hidden_state
(raw,) = taken.raws(batch).values()
print(view["video"].shape, tuple(raw.shape), tuple(hidden.shape), tuple(trial.shape),
      table.torch.allclose(features, hidden.mean(1)))
try:
    taken.view(sample(pictures[:3]))
except DataError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, FILES[MODALITY], FILES[INPUT]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines() == [
        "(4, 3, 16, 16) (1, 768) (1, 8, 16) (2, 8, 16) True",
        "shard x.tar, sample 's': uint8 [3, 20, 30, 3]; allowed: uint8 [4 or more, H, W, 3]",
    ], done.stderr[-2000:]


def test_the_places_of_a_modality_are_there() -> None:
    """Each row of the page's table: a file, and the name in it that is to be edited."""
    rows = re.findall(r"^\| `([\w/.]+)` \| (.*) \|$", PAGE.read_text(), re.M)
    assert len(rows) == 10 and {MODALITY, INPUT} <= {path for path, _ in rows}
    for path, what in rows:
        name = re.match(r"`(\w+)`", what)
        assert name is None or re.search(rf"^(class |def )?{name[1]}\b", (ROOT / path).read_text(), re.M), what
