"""Detectors against loops and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigssl.transfer.steps.detectors import at_random, patch_memory, polynomial, principal_components
from bigssl.transfer.steps.windows import StepWindows

LENGTH, STRIDE = 12, 5


@pytest.fixture
def normal() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(steps, 2)).cumsum(0).astype(np.float32) for steps in (60, 41)]


def spread(begins: list[int], scores: np.ndarray, steps: int) -> list[float]:
    """The mean, at each step, of what the windows say that it lies in."""
    found: list[list[float]] = [[] for _ in range(steps)]
    for begin, parts in zip(begins, scores, strict=True):
        for step in range(LENGTH):
            found[begin + step].append(float(parts[step * len(parts) // LENGTH]))
    return [sum(each) / len(each) for each in found]


def test_windows_cover_every_step(normal: list[np.ndarray]) -> None:
    found = StepWindows.of(normal, LENGTH, STRIDE, whole=True)
    assert [begin for number, begin in found.places.tolist() if number] == [0, 5, 10, 15, 20, 25, 29]


def test_patches_are_held_against_those_of_normal_windows_at_the_same_place(normal: list[np.ndarray]) -> None:
    def encode(windows: torch.Tensor) -> torch.Tensor:
        return windows.reshape(len(windows), 3, 8)  # three patches of four steps of two channels

    asked = np.random.default_rng(1).normal(size=(31, 2)).cumsum(0).astype(np.float32)
    found = patch_memory(encode, LENGTH, STRIDE, 3, batch=4)(normal)(asked)
    bank = encode(StepWindows.of(normal, LENGTH, STRIDE, whole=True).take(range(18))).numpy()
    mean, std = bank.reshape(-1, 8).mean(0), bank.reshape(-1, 8).std(0)
    begins, distances = [0, 5, 10, 15, 19], []
    for begin in begins:
        patches = ((asked[begin : begin + LENGTH].reshape(3, 8) - mean) / std)[:, None]
        known = [NearestNeighbors(n_neighbors=3).fit((bank[:, place] - mean) / std) for place in range(3)]
        distances.append([each.kneighbors(patch)[0].mean() for each, patch in zip(known, patches, strict=True)])
    assert len(StepWindows.of(normal, LENGTH, STRIDE, whole=True)) == 18
    np.testing.assert_allclose(found, spread(begins, np.array(distances), 31), rtol=1e-4)


class Made(TorchDispatchMode):
    """Every tensor that is made inside, and kept so that none takes the place of another."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.tensors += [each for each in tree_leaves(found) if torch.is_tensor(each)]
        return found


def test_a_memory_of_patches_is_in_memory_once(normal: list[np.ndarray]) -> None:
    with Made() as made:
        patch_memory(lambda windows: windows.reshape(-1, 6, 4) + 1, LENGTH, STRIDE, 3, batch=4)(normal)(normal[1])
    whole = 18 * LENGTH * 2 * 4  # bytes, of 18 windows
    assert len({each.data_ptr() for each in made.tensors if each.untyped_storage().nbytes() >= whole
                and each.storage_offset() == 0}) == 1  # fmt: skip


def test_principal_components_leave_what_they_do_not_explain(normal: list[np.ndarray]) -> None:
    asked = np.random.default_rng(1).normal(size=(31, 2)).astype(np.float32)
    found = principal_components(LENGTH, STRIDE)(normal)(asked)
    windows = StepWindows.of(normal, LENGTH, STRIDE, whole=True)
    pca = PCA(n_components=0.9, svd_solver="full").fit(windows.take(range(len(windows))).flatten(1).double())
    begins = [0, 5, 10, 15, 19]
    pieces = np.stack([asked[begin : begin + LENGTH].reshape(-1) for begin in begins]).astype(np.float64)
    left = np.square(pieces - pca.inverse_transform(pca.transform(pieces))).reshape(5, LENGTH, 2).mean(2)
    np.testing.assert_allclose(found, spread(begins, left, 31), rtol=1e-5)


def test_a_polynomial_goes_on_where_its_past_ends(normal: list[np.ndarray]) -> None:
    rows = normal[1]
    found = polynomial(LENGTH)(normal)(rows)
    for step in range(LENGTH, len(rows)):
        past = rows[step - LENGTH : step].astype(np.float64)
        said = [np.polyval(np.polyfit(np.arange(LENGTH), past[:, channel], 3), LENGTH) for channel in range(2)]
        assert found[step] == pytest.approx(np.mean(np.square(rows[step] - said)), rel=1e-4)
    assert found[:LENGTH] == pytest.approx([found[LENGTH:].mean()] * LENGTH)


def test_a_random_score_depends_on_its_seed_alone(normal: list[np.ndarray]) -> None:
    one, same, other = (at_random(seed)(normal)(normal[0]) for seed in ((0, 1), (0, 1), (0, 2)))
    assert (one == same).all() and (one != other).all() and len(one) == 60
