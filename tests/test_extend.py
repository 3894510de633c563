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
OBJECTIVE, MODALITY = "bigssl/objectives/latent.py", "bigssl/nets/modality/table.py"
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
    assert set(FILES) == {OBJECTIVE, MODALITY, EVALUATION}
    for path in re.findall(r"`((?:bigssl|tests|launch)/[\w/.]+)`", PAGE.read_text()):
        assert (ROOT / path).exists(), path


def test_the_pretext_trains_exports_and_is_evaluated_by_the_evaluation(beside: Path) -> None:
    (beside / "my.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(beside / "run")}))
    check = "from bigssl.cli.main import main; sys.exit(main(['config', 'check', sys.argv[2]]))"
    assert "# fits: 1 ranks" in run(beside, check, str(beside / "my.yaml"))
    train = "from bigssl.train import main; sys.exit(main(['--config', sys.argv[2]]))"
    shown = run(beside, train, str(beside / "my.yaml"))
    assert "exported image, image_slow" in shown and "alignment of views" in shown and "cosine" in shown


@pytest.mark.distributed
def test_the_contract_is_tested_of_a_file_that_it_has_never_seen(beside: Path) -> None:
    code = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/objectives', '-k', 'latent']))"
    shown = run(beside, code)
    assert int(re.search(r"(\d+) passed", shown)[1]) >= 12 and "failed" not in shown  # type: ignore[index]


def test_the_evaluation_is_tested_by_what_has_never_seen_it(beside: Path) -> None:
    code = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/transfer', '-k', 'alignment']))"
    shown = run(beside, code)
    assert int(re.search(r"(\d+) passed", shown)[1]) >= 2 and "failed" not in shown  # type: ignore[index]


def test_the_modality_gives_features() -> None:
    code = FILES[MODALITY] + """
from transformers import VideoMAEConfig, VideoMAEModel
config = VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=16)
model, row = VideoMAEModel(config).eval(), MODALITIES["video"]
videos = torch.randint(0, 256, (3, 4, 3, 16, 16), dtype=torch.uint8)
hidden, features = row.hidden(model, {"video": videos}), row.features(model, {"video": videos})
print(tuple(hidden.shape), torch.allclose(features, hidden.mean(1)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout == "(3, 8, 16) True\n", done.stderr[-2000:]
