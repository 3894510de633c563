"""Tasks that compare embeddings of views."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.progress import Progress
from by_hand.base import ByHand, both, hand, mean_features, normalised, plain


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
    queue, pushed = torch.zeros(c.queue, c.dim), 0

    def loss(batch: dict[str, Any]) -> Tensor:
        nonlocal queue, pushed
        query = F.normalize(nets[1](mean_features(nets[0], batch["view1"])).float(), dim=1)
        with torch.no_grad():
            key = F.normalize(slow[1](mean_features(slow[0], batch["view2"])).float(), dim=1)
        rest = queue[:pushed] if pushed else key
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ rest.T], 1) / c.temperature
        if torch.is_grad_enabled():
            queue = queue.index_copy(0, (pushed + torch.arange(len(key))) % c.queue, key)
            pushed += len(key)
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


def shared_out(cosines: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp: [N, K], every prototype's share the same, nearly."""
    q = (cosines / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


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
            if c.centring == "sinkhorn":
                targets = shared_out(teacher, c.first_temperature, 3)
            else:
                targets = ((teacher - centre) / c.first_temperature).softmax(1)
                centre = c.centre_momentum * centre + (1 - c.centre_momentum) * teacher.mean(0)
        count = len(teacher) // 2
        return all_but_its_own(targets.view(2, count, -1), student.view(-1, count, c.prototypes) / c.temperature)

    return ByHand(nets, loss, [(old, new, c.momentum) for old, new in zip(slow, online, strict=True)])


@hand
def swav(task: Any) -> ByHand:
    c, nets = task.config, nn.ModuleList([plain(task.backbone.model), plain(task.head), plain(task.prototypes)])

    def loss(batch: dict[str, Any]) -> Tensor:
        sides = task.crops.of(batch)
        unit = F.normalize(over_crops(task, nets, sides), dim=1)
        with torch.autocast("cpu", enabled=False):
            views = F.linear(unit, nets[2].weight).view(-1, len(sides[0]) // 2, c.prototypes)
        with torch.no_grad():
            codes = torch.stack([shared_out(view, c.epsilon, c.iterations) for view in views[:2]])
        return all_but_its_own(codes, views / c.temperature)

    def unit() -> None:
        nets[2].weight.copy_(F.normalize(nets[2].weight, dim=1))

    return ByHand(nets, loss, after=unit)


@hand
def ibot(task: Any) -> ByHand:
    c, weight = task.config, nn.Parameter(task.student.head.prototypes.weight.detach().clone())
    token = nn.Parameter(task.mask_token.detach().clone())
    online = [plain(task.backbone.model), plain(task.student.head.layers), nn.ParameterList([weight])]
    nets, slow = nn.ModuleList([*online, nn.ParameterList([token])]), copy.deepcopy(online)
    centres = torch.zeros(2, c.prototypes)

    def cosines(parts: Any, sides: list[Tensor], hidden: Tensor, shown: Tensor | None) -> list[Tensor]:
        """Of class tokens of all crops, and of hidden patches of the large ones. shown: in place of these, if any."""
        embed, encode = parts[0].embeddings, [*parts[0].layers]
        classes, patches = [], None
        for side in sides:
            tokens = embed(normalised(side), interpolate_pos_encoding=side.shape != sides[0].shape)
            if shown is not None and side is sides[0]:
                places = embed.position_embeddings[:, 1:]
                tokens = torch.cat([tokens[:, :1], torch.where(hidden[..., None], shown + places, tokens[:, 1:])], 1)
            for layer in encode:
                tokens = layer(tokens)
            tokens = parts[0].layernorm(tokens)
            classes.append(tokens[:, 0])
            patches = tokens[:, 1:][hidden] if patches is None else patches
        unit = F.normalize(parts[1](torch.cat([*classes, patches])).float(), dim=1)
        with torch.autocast("cpu", enabled=False):
            found = unit @ F.normalize(parts[2][0], dim=1).T
        return list(found.split([len(found) - len(patches), len(patches)]))

    def loss(batch: dict[str, Any]) -> Tensor:
        nonlocal centres
        sides, hidden = task.crops.of(batch), batch["hidden"].transpose(0, 1).flatten(0, 1)
        students = cosines(nets, sides, hidden, token)
        with torch.no_grad():
            teachers = cosines(slow, sides[:1], hidden, None)
            targets = [((each - centre) / c.first_temperature).softmax(1)
                       for each, centre in zip(teachers, centres, strict=True)]  # fmt: skip
            means = torch.stack([each.mean(0) for each in teachers])
            centres = c.centre_momentum * centres + (1 - c.centre_momentum) * means
        count = len(teachers[0]) // 2
        sizes = hidden.sum(1)
        each = -(targets[1] * (students[1] / c.temperature).log_softmax(1)).sum(1)
        shares = (1 / sizes.clamp(min=1)).repeat_interleave(sizes) / len(hidden)
        classes = students[0].view(-1, count, c.prototypes) / c.temperature
        return all_but_its_own(targets[0].view(2, count, -1), classes) + c.patch_weight * (shares * each).sum()

    return ByHand(nets, loss, [(old, new, c.momentum) for old, new in zip(slow, online, strict=True)])
