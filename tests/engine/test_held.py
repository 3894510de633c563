"""Two starts into one run folder: the second is refused, before it touches anything, until the first has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigssl import train
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import dump_recipe
from bigssl.engine import held

HOLDER = """
import os, sys, time
from pathlib import Path
from bigssl.engine.held import hold
said = hold(Path(sys.argv[1])) + hold(Path(sys.argv[1]))  # as a run that was tried twice in a process
child = os.fork()
if not child:  # a loader, which outlives a killed rank for a while
    os.close(1)
    time.sleep(60)
print(child, said, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child, said = process.stdout.readline().split(maxsplit=1)
    assert said == "[]\n"
    yield process
    os.kill(int(child), 9)
    process.kill()
    process.communicate()


def test_a_folder_in_which_another_trains_is_left_alone(
    holder: Any, tmp_path: Path, recipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_PAUSE", 0.001)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe(tmp_path)))
    by = f"process {holder.pid} on {os.uname().nodename}"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert train.main(["--config", str(tmp_path / "r.yaml")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"bigssl: out: value '{tmp_path}': {by} trains in it; allowed: ") and line.count("\n") == 1
    with pytest.raises(ConfigError, match=by):  # both looked before either held it
        held.hold(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    holder.kill()
    holder.wait()
    held.refuse_held(tmp_path)
    assert held.hold(tmp_path) == []


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    held.refuse_held(tmp_path)
    (note,) = held.hold(tmp_path)
    assert f"{tmp_path}/.lock: this file system has no locks (No locks available)" in note
