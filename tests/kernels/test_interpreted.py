"""Runs `interpreted/` and `test_alike.py`: Triton reads TRITON_INTERPRET when it is imported, so these tests need their
own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILES = [*sorted(Path(__file__).with_name("interpreted").glob("test_*.py")), Path(__file__).with_name("test_alike.py")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_interpreted_kernels_are_right(file):
    variables = {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
