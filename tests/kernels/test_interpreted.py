"""Runs `interpreted/` and `test_alike.py`: Triton reads TRITON_INTERPRET when it is imported, so these tests need their
own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


@pytest.mark.parametrize("tests", ["interpreted", "test_alike.py"])  # bfloat16 made exact, and as it comes
def test_the_interpreted_kernels_are_right(tests):
    variables = {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / tests]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
