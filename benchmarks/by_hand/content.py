"""Tasks over what is in one picture, or beside it: its pixels, places, colours, a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.data.loading.loader import SEEDS
from bigssl.nets.remaking.base import GREY
from bigssl.nets.remaking.colorization import GREY_UP_TO
from bigssl.objectives.jigsaw import DEVIATION, FLAT, MEAN
from by_hand.base import ByHand, hand, mean_features, normalised, plain


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
    known = [task.log_scale, *([task.bias] if hasattr(task, "bias") else [])]
    scalars = nn.ParameterList([nn.Parameter(each.detach().clone()) for each in known])
    parts = [plain(part) for part in (task.image.model, task.image_projection, task.text.model, task.text_projection)]
    nets = nn.ModuleList([*parts, scalars])

    def loss(batch: dict[str, Any]) -> Tensor:
        image = F.normalize(parts[1](mean_features(parts[0], batch["image"])).float(), dim=1)
        mask = batch["attention_mask"]
        hidden = parts[2](input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        text = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        text = F.normalize(parts[3](text).float(), dim=1)
        with torch.autocast("cpu", enabled=False):
            return compare(image, text, scalars[0].exp().clamp(max=100), scalars[-1])

    return ByHand(nets, loss)


@hand
def inpainting(task: Any) -> ByHand:
    nets, c = nn.ModuleList([plain(task.backbone.model), plain(task.remaker), plain(task.discriminator)]), task.config
    judge = nets[2]

    def paint(pixels: Tensor, hidden: Tensor) -> Tensor:
        states = nets[0](pixel_values=pixels.masked_fill(hidden, GREY / 127.5 - 1)).last_hidden_state
        return nets[1].decoder(states).tanh()

    def loss(batch: dict[str, Any]) -> Tensor:
        pixels, hidden = normalised(batch["image"]), batch["hidden"]
        filled = torch.where(hidden, paint(pixels, hidden), pixels)
        error = ((filled - pixels).square().sum((1, 2, 3)) / (hidden.sum((1, 2, 3)) * pixels.shape[1])).mean()
        told_real, told_made = judge(pixels)[0], judge(filled.detach())[0]
        judged = -(F.logsigmoid(told_real) + F.logsigmoid(-told_made)).mean()
        judge.requires_grad_(False)
        fooled = -F.logsigmoid(judge(filled)[0]).mean()
        judge.requires_grad_(True)
        return c.reconstruction * error + c.adversarial * fooled + judged - judged.detach()

    return ByHand(nets, loss)


@hand
def colorization(task: Any) -> ByHand:
    nets, c = nn.ModuleList([plain(task.backbone.model), plain(task.painter)]), task.config
    bins = task.painter.bins
    counts = torch.zeros(len(bins.centres))

    def loss(batch: dict[str, Any]) -> Tensor:
        nonlocal counts
        light, colour = batch["light"].expand(-1, 3, -1, -1), batch["colour"]
        states = nets[0](pixel_values=normalised(light)).last_hidden_state
        logits = nets[1](states.flatten(2).transpose(1, 2)).float()
        near, shares = bins(colour)
        coloured = (colour.abs().amax((1, 2, 3)) > GREY_UP_TO).float()[:, None, None]
        weight = bins.weights(counts, c.uniform)[near[:, 0]] * coloured
        wanted = torch.zeros_like(logits).scatter_(1, near, shares)
        each = -(wanted * logits.log_softmax(1)).sum(1)
        if torch.is_grad_enabled():
            places = coloured.expand(each.shape).flatten()
            counts = counts.index_add(0, near[:, 0].flatten(), places)
        return (weight * each).sum() / (coloured.sum() * each[0].numel())

    return ByHand(nets, loss)
