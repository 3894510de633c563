"""Other hidden frames of the same sound that a hidden frame is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.nets.chance import noise
from bigssl_kernels.dispatch import exact


def distractors(hidden: Tensor, rows: Tensor, seeds: Tensor, count: int) -> Tensor:
    """int64 [N, count]: for each hidden frame the numbers, among all N, of others of its sound, each as likely as
    another, with replacement.

    Args:
        hidden: bool [B, F], of each row none or two at least. rows: int64 [N], where they are in B · F, ascending.
        seeds: int64 [N], one for each.
    """
    sound, begin, own = _places(hidden, rows)
    among = (hidden.sum(1)[sound] - 1)[:, None]
    drawn = torch.minimum((noise.uniform(seeds, "distractors", count) * among).long(), among - 1)  # of rounding up
    return begin[:, None] + drawn + (drawn >= own[:, None])


@exact
def cosines_within(contexts: Tensor, targets: Tensor, hidden: Tensor, rows: Tensor, others: Tensor, most: int
                   ) -> Tensor:
    """float32 [N, 1 + K]: the cosine of each context with its own target, then with the targets `others`, through a
    product for each sound: of K vectors for each frame there would be K times as many numbers to keep.

    Args:
        contexts, targets: [N, P]. hidden, rows: as of `distractors`. others: int64 [N, K] of N, of the same sound.
        most: hidden frames that a sound has at most.
    """
    sound, begin, own = _places(hidden, rows)
    place = sound * most + own  # [N] of B · most

    def by_sound(vectors: Tensor) -> Tensor:
        unit = F.normalize(vectors.float(), dim=1)
        empty = unit.new_zeros(len(hidden) * most, unit.shape[1])
        return empty.index_copy(0, place, unit).unflatten(0, (len(hidden), most))

    products = (by_sound(contexts) @ by_sound(targets).transpose(1, 2)).flatten(0, 1)[place]  # [N, most]
    return products.gather(1, torch.cat([own[:, None], others - begin[:, None]], 1))


def _places(hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [N] each: the sound of a frame, the number of its first hidden frame, the frame's own among those."""
    counts, sound = hidden.sum(1), rows // hidden.shape[1]
    begin = (counts.cumsum(0) - counts)[sound]
    return sound, begin, torch.arange(len(rows), device=rows.device) - begin
