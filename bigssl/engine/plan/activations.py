"""How much a forward pass keeps for its backward: counted on tensors that have shapes but no memory.

The estimate is the sum over distinct storages that autograd saves in one forward pass of a rank's micro-batch, without
the parameters: what `torch.autograd.graph.saved_tensors_hooks` sees, with autocast and recomputation as in the run.
What it leaves out: temporaries of a kernel, the allocator's fragmentation, what gathering over ranks adds to a
contrastive loss, and what a loss computes from numbers, where the count ends. Add a few tens of per cent.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import as_it_is
from bigssl.data.sample import Sample
from bigssl.engine.plan.memory import cast_weights
from bigssl.engine.plan.preflight import build_networks
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import quiet, shapes_only
from bigssl.objectives.base import Objective
from bigssl.objectives.joint import Joint

MOST = 32  # samples of a source that are really prepared; more are in proportion


@dataclass
class Activations:
    """bytes: kept by one forward pass. batch: bytes of the micro-batch itself. partly, unknown: why the count of an
    objective ends before its loss, or does not exist."""

    bytes: int = 0
    batch: int = 0
    partly: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


class OnPaper:
    """The networks of a recipe without their weights (a pretrained backbone is loaded to be counted).

    Raises:
        ConfigError: as `build_networks`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._steps = recipe.steps
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            with torch.device("meta"):
                self.objective, self.towers = build_networks(recipe)
        except ConfigError:
            raise
        except Exception:  # an objective that looks at numbers while it is built
            with torch.random.fork_rng(devices=[]):
                self.objective, self.towers = build_networks(recipe)
        shapes_only(self.objective, self._fake)
        for teacher in self.objective.teachers().values():
            shapes_only(teacher.module, self._fake)

    def activations(self, micro: dict[str, int], *, bf16: bool) -> Activations:
        """Of a pass with `micro` samples a rank by source (of many, from a part of them)."""
        found = Activations()
        try:
            by_source = {name: self._batch(name, min(count, MOST)) for name, count in micro.items()}
            batch = self.objective.assemble(by_source)
        except Exception as error:  # an objective that wants something else than the sample made up here
            found.unknown["batch"] = _short(error)
            return found
        for name, part, its_batch in _parts(self.objective, batch):
            scale = max(micro[source] / min(micro[source], MOST) for source in part.sources())
            tensors = [leaf for leaf in tree_leaves(its_batch) if isinstance(leaf, Tensor)]
            found.batch += round(scale * sum(tensor.nbytes for tensor in tensors))
            found.bytes += round(scale * self._count(found, name, part, its_batch, bf16))
        return found

    def _batch(self, source: str, count: int) -> Any:
        """Made-up samples, prepared and collated as in a loader."""
        rng, sample = np.random.default_rng(0), everything_sample(source, self.towers.values())

        def more(_: np.random.Generator, use: Callable[[Sample], Any] = as_it_is) -> Any:
            return use(sample)

        samples = collate([self.objective.prepare(sample, rng, more) for _ in range(count)])
        return samples | {SEEDS: torch.zeros(count, dtype=torch.int64)}

    def _count(self, found: Activations, name: str, part: Objective, batch: Any, bf16: bool) -> int:
        kept: dict[int, tuple[torch.UntypedStorage, int]] = {}  # holding the storage keeps its handle from being reused
        casts = {tuple(weight.shape) for weight in cast_weights(part)}

        def keep(tensor: Tensor) -> Tensor:
            storage, shape = tensor.untyped_storage(), tuple(tensor.shape)
            if tensor.dtype != torch.bfloat16 or not casts & {shape, shape[::-1]}:  # copies of weights count elsewhere
                kept[storage._cdata] = (storage, storage.nbytes())
            return tensor

        reached: set[str] = set()
        own = {id(module) for module in part.modules()}
        towers = {key: tower for key, tower in self.towers.items() if id(tower) in own}
        hooks = [tower.model.register_forward_hook(_note(reached, key)) for key, tower in towers.items()]
        try:
            saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            eager = torch.compiler.set_stance("force_eager")  # what `compile` spares cannot be said beforehand
            with self._fake, saved, eager, quiet(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                part(tree_map(_without_numbers, batch), Progress(0, self._steps))
        except Exception as error:  # whatever a loss does with numbers that are not there
            complete = reached == towers.keys()
            (found.partly if complete else found.unknown)[name] = _short(error)
        finally:
            for hook in hooks:
                hook.remove()
        weights = {parameter.untyped_storage()._cdata for parameter in part.parameters()}
        return sum(size for handle, (_, size) in kept.items() if handle not in weights)


def _note(reached: set[str], name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        reached.add(name)

    return hook


def _parts(objective: Objective, batch: Any) -> Iterator[tuple[str, Objective, Any]]:
    """The objectives that compute a loss each, with their batches: one that fails must not hide the others. Where some
    share a pass, it is all of them in one."""
    if isinstance(objective, Joint) and not objective.hosts:
        for name, part in objective.parts.items():
            assert isinstance(part, Objective)
            yield name, part, batch[name]
    else:
        yield objective.config.name, objective, batch


def everything_sample(source: str, towers: Collection[Tower]) -> Sample:
    """One of everything: a picture, and a text, a series and a sound longer than any window of `towers`."""
    rng, picture, series, sound = np.random.default_rng(0), io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(picture, "PNG")
    steps, frames = (2 * max((t.length for t in towers if t.modality == own), default=1) for own in ("series", "audio"))
    channels = max((tower.channels for tower in towers if tower.modality == "series"), default=1)
    np.save(series, rng.standard_normal((steps, channels), dtype=np.float32))
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, max((tower.rate for tower in towers), default=0) or 16_000, 0, "NONE", ""))
        file.writeframes(rng.integers(-(2**15), 2**15, frames, dtype=np.int16).tobytes())
    text = b"The quick brown fox jumps over the lazy dog. " * 1000
    fields = {"png": picture.getvalue(), "txt": text, "npy": series.getvalue(), "wav": sound.getvalue()}
    return Sample("made-up", fields, 0, 0, "made-up", source)


def _without_numbers(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
