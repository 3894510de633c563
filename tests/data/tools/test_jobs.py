"""Work in several processes: the same results in the same order, errors as they are, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from bigssl.data.errors import DataError
from bigssl.data.tools.jobs import each


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_are_in_order(jobs: int) -> None:
    offset = 10  # a closure: nothing has to be pickled
    assert list(each(lambda task: task * 2 + offset, range(7), jobs)) == [10, 12, 14, 16, 18, 20, 22]
    assert list(each(str, [], jobs)) == []


def test_several_processes_do_the_work() -> None:
    pids = set(each(lambda task: os.getpid(), range(8), 2))
    assert os.getpid() not in pids
    assert set(each(lambda task: os.getpid(), range(8), 1)) == {os.getpid()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_are_those_of_the_function(jobs: int) -> None:
    def fail(task: int) -> int:
        if task == 2:
            raise DataError("broken", key="k", offset=3, cause="why")
        return task

    results = each(fail, range(5), jobs)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="broken") as caught:
        next(results)
    assert (caught.value.key, caught.value.offset, caught.value.cause) == ("k", 3, "why")


def test_a_killed_process_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(DataError, match="worker process was killed; .*--jobs"):
        list(each(lambda task: os.kill(os.getpid(), signal.SIGKILL), range(4), 2))
    with pytest.raises(DataError, match="--jobs 0"):
        list(each(str, [1], 0))


def test_a_killed_parent_leaves_no_process(tmp_path: Path, gone: Any) -> None:
    code = """
        import os, sys, time
        from pathlib import Path
        from bigssl.data.tools.jobs import each
        def work(task):
            Path(sys.argv[1], str(os.getpid())).touch()
            time.sleep(60)
        list(each(work, range(2), 2))
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    assert gone([int(path.name) for path in tmp_path.iterdir()])
