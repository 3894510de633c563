"""Steps of the objectives of pictures as somebody writes them by hand, for one process: what `objectives.py` compares
with. Each function takes the networks of an objective (copies, BatchNorm as torch has it) and returns what a step
computes of a batch; the maths is that of the objective, which `objectives.py` verifies before it takes times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.data.loading.loader import SEEDS
from bigssl.nets.progress import Progress
from bigssl.objectives.jigsaw import DEVIATION, FLAT, MEAN


class ByHand(NamedTuple):
    """nets: what is trained. loss: of a batch. teachers: pairs of a slow network and its student, with the momentum."""

    nets: nn.Module
    loss: Callable[[dict[str, Any]], Tensor]
    teachers: list[tuple[nn.Module, nn.Module, float]] = []  # noqa: RUF012 - nobody writes to it


HANDS: dict[str, Callable[[Any], ByHand]] = {}
"""By the name of a task, of an objective that nothing was done with yet."""


def hand(make: Callable[[Any], ByHand]) -> Callable[[Any], ByHand]:
    HANDS[make.__name__] = make
    return make


def plain(module: nn.Module) -> Any:
    """A copy with torch's own BatchNorm in place of ours."""
    twin = copy.deepcopy(module)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.SyncBatchNorm):
                kind = nn.BatchNorm2d if parent_is_map(parent) else nn.BatchNorm1d
                new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                new.load_state_dict(child.state_dict())
                setattr(parent, name, new)
            else:
                replace(child)

    replace(twin)
    return twin


def parent_is_map(parent: nn.Module) -> bool:
    """Whether what stands beside a BatchNorm is a convolution."""
    return any(isinstance(child, nn.Conv2d) for child in parent.children())


def normalised(pictures: Tensor) -> Tensor:
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def mean_features(model: nn.Module, pictures: Tensor) -> Tensor:
    hidden = model(pixel_values=normalised(pictures)).last_hidden_state
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 1:].mean(1)


def both(batch: dict[str, Any]) -> Tensor:
    return torch.cat([batch["view1"], batch["view2"]])


@hand
def simclr(task: Any) -> ByHand:
    nets, t = nn.ModuleList([plain(task.backbone.model), plain(task.head)]), task.config.temperature

    def loss(batch: dict[str, Any]) -> Tensor:
        z = F.normalize(nets[1](mean_features(nets[0], both(batch))).float(), dim=1)
        similarity = (z @ z.T / t).fill_diagonal_(float("-inf"))
        return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))

    return ByHand(nets, loss)


@hand
def byol(task: Any) -> ByHand:
    online = [plain(task.online.tower.model), plain(task.online.projector), plain(task.predictor)]
    nets, slow = nn.ModuleList(online), copy.deepcopy(online[:2])

    def loss(batch: dict[str, Any]) -> Tensor:
        views = both(batch)
        made = F.normalize(nets[2](nets[1](mean_features(nets[0], views))).float(), dim=1)
        with torch.no_grad():
            target = F.normalize(slow[1](mean_features(slow[0], views)).float(), dim=1).roll(len(views) // 2, 0)
        return 2 * (2 - 2 * (made * target).sum(1)).mean()

    return ByHand(nets, loss, [(old, new, task.config.momentum) for old, new in zip(slow, online, strict=False)])


@hand
def simsiam(task: Any) -> ByHand:
    nets = nn.ModuleList([plain(task.backbone.model), plain(task.projector), plain(task.predictor)])

    def loss(batch: dict[str, Any]) -> Tensor:
        z = nets[1](mean_features(nets[0], both(batch))).float()
        return 1 - F.cosine_similarity(nets[2](z).float(), z.detach().roll(len(z) // 2, 0)).mean()

    return ByHand(nets, loss)


@hand
def vicreg(task: Any) -> ByHand:
    nets, weights = nn.ModuleList([plain(task.backbone.model), plain(task.expander)]), task.config

    def terms(z: Tensor) -> tuple[Tensor, Tensor]:
        rows = z - z.mean(0)
        covariance = rows.T @ rows / (len(z) - 1)
        off = covariance.square().sum() - covariance.diagonal().square().sum()
        return F.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean(), off / z.shape[1]

    def loss(batch: dict[str, Any]) -> Tensor:
        one, two = nets[1](mean_features(nets[0], both(batch))).float().chunk(2)
        with torch.autocast("cpu", enabled=False):
            (v1, c1), (v2, c2) = terms(one), terms(two)
            return (weights.invariance * F.mse_loss(one, two) + weights.variance * (v1 + v2) / 2
                    + weights.covariance * (c1 + c2))  # fmt: skip

    return ByHand(nets, loss)


@hand
def barlow_twins(task: Any) -> ByHand:
    nets, c = nn.ModuleList([plain(task.backbone.model), plain(task.projector)]), task.config
    norm = nn.BatchNorm1d(c.dim, affine=False)

    def loss(batch: dict[str, Any]) -> Tensor:
        one, two = nets[1](mean_features(nets[0], both(batch))).float().chunk(2)
        with torch.autocast("cpu", enabled=False):
            cross = norm(one).T @ norm(two) / len(one)
            diagonal = cross.diagonal()
            off = cross.square().sum() - diagonal.square().sum()
            return c.scale * ((diagonal - 1).square().sum() + c.redundancy * off)

    return ByHand(nets, loss)


@hand
def moco(task: Any) -> ByHand:
    c = task.config
    online = [plain(task.network.tower.model), plain(task.network.projector)]
    nets, slow = nn.ModuleList(online), copy.deepcopy(online)
    queue, filled = torch.zeros(c.queue, c.dim), torch.zeros((), dtype=torch.int64)

    def loss(batch: dict[str, Any]) -> Tensor:
        nonlocal queue, filled
        query = F.normalize(nets[1](mean_features(nets[0], batch["view1"])).float(), dim=1)
        with torch.no_grad():
            key = F.normalize(slow[1](mean_features(slow[0], batch["view2"])).float(), dim=1)
        rest = queue[: int(filled)] if filled else key
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ rest.T], 1) / c.temperature
        if torch.is_grad_enabled():
            place = (filled + torch.arange(len(key))) % c.queue
            queue = queue.index_copy(0, place, key)
            filled = (filled + len(key)).clamp(max=c.queue)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

    return ByHand(nets, loss, [(old, new, c.momentum) for old, new in zip(slow, online, strict=True)])


@hand
def lejepa(task: Any) -> ByHand:
    nets, c = nn.ModuleList([plain(task.backbone.model), plain(task.projector)]), task.config
    t = torch.linspace(-5, 5, 17)
    gauss = (-t.square() / 2).exp()
    directions = task._directions(Progress(0, 1), torch.device("cpu"))

    def normality(z: Tensor) -> Tensor:
        wave = z @ directions  # [B, K]
        turned = wave[..., None] * t
        distance = (turned.cos().mean(0) - gauss).square() + turned.sin().mean(0).square()  # [K, T]
        return len(z) * torch.trapezoid(distance * gauss, t).mean()

    def loss(batch: dict[str, Any]) -> Tensor:
        views = torch.stack(nets[1](mean_features(nets[0], both(batch))).float().chunk(2))
        with torch.autocast("cpu", enabled=False):
            prediction = (views - views.mean(0)).square().mean()
            share = c.regularisation
            return (1 - share) * prediction + share * (normality(views[0]) + normality(views[1])) / 2

    return ByHand(nets, loss)


def over_crops(task: Any, nets: Any, sides: list[Tensor]) -> Tensor:
    """What a head makes of all crops, the large ones first."""
    return nets[1](torch.cat([mean_features(nets[0], side) for side in sides])).float()


def all_but_its_own(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy of each view with each other view's targets. targets [2, B, K], logits [V, B, K]."""
    terms = [-(targets[t] * logits[s].log_softmax(-1)).sum(-1).mean()
             for t in range(2) for s in range(len(logits)) if s != t]  # fmt: skip
    return torch.stack(terms).mean()


@hand
def dino(task: Any) -> ByHand:
    c, weight = task.config, nn.Parameter(task.student.head.prototypes.weight.detach().clone())
    online = [plain(task.backbone.model), plain(task.student.head.layers), nn.ParameterList([weight])]
    nets, slow, centre = nn.ModuleList(online), copy.deepcopy(online), torch.zeros(c.prototypes)

    def cosines(parts: Any, sides: list[Tensor]) -> Tensor:
        unit = F.normalize(over_crops(task, parts, sides), dim=1)
        with torch.autocast("cpu", enabled=False):
            return unit @ F.normalize(parts[2][0], dim=1).T

    def loss(batch: dict[str, Any]) -> Tensor:
        nonlocal centre
        sides = task.crops.of(batch)
        student = cosines(nets, sides)
        with torch.no_grad():
            teacher = cosines(slow, sides[:1])
            targets = ((teacher - centre) / c.first_temperature).softmax(1)
            if torch.is_grad_enabled() or student.requires_grad:
                centre = c.centre_momentum * centre + (1 - c.centre_momentum) * teacher.mean(0)
        count = len(teacher) // 2
        return all_but_its_own(targets.view(2, count, -1), student.view(-1, count, c.prototypes) / c.temperature)

    return ByHand(nets, loss, [(old, new, c.momentum) for old, new in zip(slow, online, strict=True)])


@hand
def swav(task: Any) -> ByHand:
    c, nets = task.config, nn.ModuleList([plain(task.backbone.model), plain(task.head), plain(task.prototypes)])

    def shared_out(cosines: Tensor) -> Tensor:
        q = (cosines / c.epsilon).exp()
        for _ in range(c.iterations):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        return q

    def loss(batch: dict[str, Any]) -> Tensor:
        sides = task.crops.of(batch)
        unit = F.normalize(over_crops(task, nets, sides), dim=1)
        with torch.autocast("cpu", enabled=False):
            views = F.linear(unit, nets[2].weight).view(-1, len(sides[0]) // 2, c.prototypes)
        with torch.no_grad():
            codes = torch.stack([shared_out(views[0]), shared_out(views[1])])
        return all_but_its_own(codes, views / c.temperature)

    return ByHand(nets, loss)


@hand
def mae(task: Any) -> ByHand:
    nets, side = nn.ModuleList([plain(task.backbone.model), plain(task.remaker.decoder)]), task.patch
    embed, layers, norm = nets[0].embeddings, nets[0].layers, nets[0].layernorm
    embed._forward_hooks.clear()

    def loss(batch: dict[str, Any]) -> Tensor:
        pixels = batch["image"].float() / 127.5 - 1
        order = task.remaker.order(batch[SEEDS])
        seen, hidden = order[:, : task.visible], order[:, task.visible :]
        tokens = embed(pixels)
        shown = tokens[:, 1:].gather(1, seen[..., None].expand(-1, -1, tokens.shape[-1]))
        states = torch.cat([tokens[:, :1], shown], 1)
        for layer in layers:
            states = layer(states)
        predicted = nets[1](norm(states), order.argsort(1)).logits.float()
        cut = F.unfold(pixels, side, stride=side).transpose(1, 2)  # channel, y, x
        cut = cut.unflatten(-1, (-1, side, side)).permute(0, 1, 3, 4, 2).flatten(2)
        target = (cut - cut.mean(-1, keepdim=True)) / (cut.var(-1, keepdim=True) + 1e-6).sqrt()
        where = hidden[..., None].expand(-1, -1, cut.shape[-1])
        return F.mse_loss(predicted.gather(1, where), target.gather(1, where))

    return ByHand(nets, loss)


@hand
def autoencoder(task: Any) -> ByHand:
    nets = nn.ModuleList([plain(task.backbone.model), plain(task.remaker)])

    def loss(batch: dict[str, Any]) -> Tensor:
        pixels = normalised(batch["image"])
        return F.mse_loss(nets[1](nets[0](pixel_values=pixels).last_hidden_state), pixels)

    return ByHand(nets, loss)


def of_classes(task: Any, pictures: Callable[[dict[str, Any]], tuple[Tensor, Tensor]], tiles: int) -> ByHand:
    """Features of each picture, those of `tiles` beside each other, and a classifier."""
    nets = nn.ModuleList([plain(task.backbone.model), plain(task.head)])

    def loss(batch: dict[str, Any]) -> Tensor:
        shown, labels = pictures(batch)
        features = mean_features(nets[0], shown)
        return F.cross_entropy(nets[1](features.view(len(labels), -1)).float(), labels)

    return ByHand(nets, loss)


@hand
def rotation(task: Any) -> ByHand:
    def turned(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image = batch["image"]
        return torch.cat([image.rot90(n, (2, 3)) for n in range(4)]), torch.arange(4).repeat_interleave(len(image))

    return of_classes(task, turned, 1)


@hand
def patch_position(task: Any) -> ByHand:
    return of_classes(task, lambda batch: (batch["patches"].flatten(0, 1), batch["label"]), 2)


@hand
def jigsaw(task: Any) -> ByHand:
    def tiles(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        values = batch["tiles"].flatten(0, 1).float()
        values = values - values.mean((2, 3), keepdim=True)
        deviation = values.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=FLAT)
        return MEAN + DEVIATION * values / deviation, batch["label"]

    return of_classes(task, tiles, 9)


@hand
def clip(task: Any) -> ByHand:
    return of_pairs(task, lambda image, text, scale, bias: (
        F.cross_entropy(scale * image @ text.T, torch.arange(len(image)))
        + F.cross_entropy(scale * text @ image.T, torch.arange(len(image)))) / 2)  # fmt: skip


@hand
def siglip(task: Any) -> ByHand:
    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        signs = 2 * torch.eye(len(image)) - 1
        return -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / len(image)

    return of_pairs(task, loss)


def of_pairs(task: Any, compare: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> ByHand:
    scalars = nn.ParameterList([nn.Parameter(task.log_scale.detach().clone()),
                                nn.Parameter(getattr(task, "bias", torch.zeros(1)).detach().clone())])  # fmt: skip
    parts = [plain(part) for part in (task.image.model, task.image_projection, task.text.model, task.text_projection)]
    nets = nn.ModuleList([*parts, scalars])

    def loss(batch: dict[str, Any]) -> Tensor:
        image = F.normalize(parts[1](mean_features(parts[0], batch["image"])).float(), dim=1)
        mask = batch["attention_mask"]
        hidden = parts[2](input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        text = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        text = F.normalize(parts[3](text).float(), dim=1)
        with torch.autocast("cpu", enabled=False):
            return compare(image, text, scalars[0].exp().clamp(max=100), scalars[1])

    return ByHand(nets, loss)
