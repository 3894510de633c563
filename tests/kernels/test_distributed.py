"""W gloo ranks compute what one process does: the loss, and the parameter gradients after averaging over ranks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("gloo_worker.py")
spec = importlib.util.spec_from_file_location("gloo_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

WORLDS = [2, 3, 4]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """World size -> what each rank saved, computed once for all cases."""
    cache = {}

    def results(world):
        if world not in cache:
            folder = tmp_path_factory.mktemp(f"world{world}")
            started = [
                subprocess.Popen([sys.executable, WORKER, str(rank), str(world), folder], stderr=subprocess.PIPE)
                for rank in range(world)
            ]
            errors = [process.communicate(timeout=240)[1].decode() for process in started]
            assert all(process.returncode == 0 for process in started), "\n".join(errors)
            cache[world] = [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]
        return cache[world]

    return results


@pytest.mark.distributed
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", worker.cases())
def test_ranks_equal_one_process(ranks, world, name):
    case = worker.cases()[name]
    truth = worker.step((case[0], "reference", *case[2:]), 0, 1, None)
    got = [result[name] for result in ranks(world)]
    for key in truth.keys() - {"loss", "scale"} if case[3] == "uneven" else truth.keys() - {"loss"}:
        average = sum(result[key] for result in got) / world
        torch.testing.assert_close(average, truth[key], msg=lambda text, key=key: f"{key}: {text}")
    losses = torch.stack([result["loss"] for result in got])
    if case[2] == "none":
        torch.testing.assert_close(losses.mean(), truth["loss"].mean())
    else:
        assert (losses == losses[0]).all()
        torch.testing.assert_close(losses[0], truth["loss"])
