"""The contrastive losses: exact, never holding the matrix of logits, local or over a process group."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels.agreement import agreed
from bigssl_kernels.checks import (
    as_scalar,
    check_alike,
    check_indices,
    check_matrix,
    check_memory,
    check_not_empty,
    check_pairs,
    check_reduction,
    compute_dtype,
)
from bigssl_kernels.contrastive import dense as _dense
from bigssl_kernels.contrastive.clip import clip_rows
from bigssl_kernels.contrastive.info_nce import info_nce_rows
from bigssl_kernels.contrastive.nt_xent import nt_xent_rows
from bigssl_kernels.contrastive.sigmoid import sigmoid_rows
from bigssl_kernels.contrastive.similarity import room
from bigssl_kernels.contrastive.sup_con import classes_of, sup_con_rows
from bigssl_kernels.dispatch import FAMILIES, choose
from bigssl_kernels.distributed import gather, group_name, rank, reduce_rows, world_size
from bigssl_kernels.unit import prepare


def nt_xent(
    view1: Tensor,
    view2: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | None = None,
    impl: str = "auto",
    memory: str = "gather",
) -> Tensor:
    """Normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020).

    Each of the 2N rows picks its other view among the 2N - 1 rows that are not itself:
    L_i = logsumexp_{j != i} z_i.z_j / temperature - z_i.z_partner(i) / temperature.
    Beyond small batches, no 2N x 2N matrix is ever held.

    Args:
        view1: [N, D] embeddings, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        view2: [N, D] embeddings of the other view, row i beside row i; same dtype and device.
        temperature: divides the similarities; a number or a tensor of one element, which gets its gradient.
        normalize: bring rows to length one first. A row of zeros stays zero and gets a zero gradient.
        reduction: "mean" over the 2N rows, "sum", or "none": losses of view1's rows, then of view2's.
        group: process group over which the batch is spread, the same N on each rank (ValueError on every rank where it
            is not; what one rank finds wrong, all raise; a group of nccl alone is asked at its first call only). Each
            rank returns the same global mean; the gradient at a local embedding is W x d(global mean)/d(embedding), so
            that averaging parameter gradients over ranks gives exactly the single-process gradient. "none" returns the
            local rows' losses.
        impl: "auto", "triton", "torch" or "reference"; the variable BIGSSL_KERNELS replaces "auto". Where each row has
            one candidate only (a single pair, a queue of no negatives), dense torch runs for any of them.
        memory: with a group, "gather" brings the embeddings of all ranks here, [W * 2N, D]; "ring" passes them round in
            blocks, two of which are here at a time, for batches whose gathered matrix is too large. The same values up
            to the order of sums. The reference always gathers.

    Returns:
        A float32 scalar (float64 for float64 inputs), or [2N] losses for reduction="none". NaN in gives NaN out; a
        single pair gives 0.

    Raises:
        ValueError: shapes, dtypes, devices, temperature or an option do not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    with agreed("nt_xent", "view1", view1, group):
        check_pairs("nt_xent", "view2", view2, "view1", view1)
        check_reduction("nt_xent", reduction)
        check_memory("nt_xent", memory)
        scale = as_scalar("nt_xent", "temperature", temperature, view1).reciprocal()
        chosen = choose("nt_xent", "similarity", impl, view1)
    dense = _dense.products_in("nt_xent", chosen, 2 * view1.shape[0], group, view1)
    if dense is not None:
        rows = _dense.nt_xent(view1, view2, scale, normalize, group, dense)
    else:
        z = prepare(torch.cat([view1, view2]), normalize, compute_dtype(view1))
        name = group_name(group)
        ring = bool(name) and memory == "ring"
        everyone = gather(z, name) if name and not ring else None
        own = rank(group) * z.shape[0]
        kept = room(z, None, name, chosen)
        rows = nt_xent_rows(z, everyone, scale, own, scale.requires_grad, name, ring, chosen, kept)[0]
    return reduce_rows(rows, reduction, group, 2 * view1.shape[0] * world_size(group))


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | None = None,
    impl: str = "auto",
    memory: str = "gather",
) -> Tensor:
    """Symmetric image-text cross-entropy of CLIP (Radford et al. 2021).

    Each image picks its text among N and each text its image; the loss of a pair is the mean of both. Beyond small
    batches, no N x N matrix is ever held.

    Args:
        image: [N, D] embeddings, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        text: [N, D] embeddings, row i belonging to image i; same dtype and device.
        logit_scale: multiplies the similarities (the exp of CLIP's parameter: the caller takes the exp); a number or a
            tensor of one element, which gets its gradient.
        normalize: bring rows to length one first. A row of zeros stays zero and gets a zero gradient.
        reduction: "mean" over the pairs, "sum", or "none" for the losses of the local pairs.
        group, impl, memory: as in `nt_xent`.

    Returns:
        A float32 scalar (float64 for float64 inputs), or [N] losses for reduction="none"; a single pair gives 0.

    Raises:
        ValueError: shapes, dtypes, devices, scale or an option do not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    with agreed("clip_loss", "image", image, group):
        check_pairs("clip_loss", "text", text, "image", image)
        check_reduction("clip_loss", reduction)
        check_memory("clip_loss", memory)
        scale = as_scalar("clip_loss", "logit_scale", logit_scale, image)
        chosen = choose("clip_loss", "similarity", impl, image)
    dense = _dense.products_in("clip_loss", chosen, image.shape[0], group, image)
    if dense is not None:
        rows = _dense.clip_loss(image, text, scale, normalize, group, dense)
    else:
        dtype, name = compute_dtype(image), group_name(group)
        a, b = prepare(image, normalize, dtype), prepare(text, normalize, dtype)
        ring = bool(name) and memory == "ring"
        everyone = (gather(a, name), gather(b, name)) if name and not ring else (None, None)
        rows = clip_rows(a, b, *everyone, scale, scale.requires_grad, name, ring, chosen, room(a, b, name, chosen))[0]
    return reduce_rows(rows, reduction, group, image.shape[0] * world_size(group))


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Contrastive loss against a queue (van den Oord et al. 2018; MoCo, He et al. 2020).

    Each query picks its positive among that and the K negatives, which all queries share.

    Args:
        query: [N, D] embeddings, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        positive: [N, D] embeddings, row i belonging to query i; same dtype and device.
        negatives: [K, D] embeddings; same dtype and device. K may be 0. It gets a gradient where it requires one.
        temperature: divides the similarities; a number or a tensor of one element, which gets its gradient.
        normalize: bring rows to length one first. A row of zeros stays zero and gets a zero gradient.
        reduction: "mean" over the queries, "sum", or "none".
        impl: as in `nt_xent`.

    Returns:
        A float32 scalar (float64 for float64 inputs), or [N] losses for reduction="none"; without negatives 0.

    Raises:
        ValueError: shapes, dtypes, devices, temperature or an option do not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_pairs("info_nce", "positive", positive, "query", query)
    check_matrix("info_nce", "negatives", negatives)
    check_alike("info_nce", "negatives", negatives, "query", query)
    check_reduction("info_nce", reduction)
    scale = as_scalar("info_nce", "temperature", temperature, query).reciprocal()
    chosen = choose("info_nce", "similarity", impl, query)
    dense = _dense.products_in(
        "info_nce", chosen, query.shape[0] + negatives.shape[0], None, query, positive, negatives
    )
    if dense is not None:
        rows = _dense.info_nce(query, positive, negatives, scale, normalize, dense)
    else:
        dtype = compute_dtype(query)
        towers = [prepare(tower, normalize, dtype) for tower in (query, positive, negatives)]
        kept = room(towers[0], towers[2], "", chosen)
        rows = info_nce_rows(*towers, scale, scale.requires_grad, chosen, kept)[0]
    return reduce_rows(rows, reduction, None, query.shape[0])


def sup_con(
    embeddings: Tensor,
    ids: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: ProcessGroup | None = None,
    impl: str = "auto",
) -> Tensor:
    """Supervised contrastive loss, the mean of the positives outside the logarithm (Khosla et al. 2020, L_out).

    Rows with equal id are positives of each other; a row without any is left out of the mean, but stays a negative of
    all others. With each id twice this is NT-Xent.

    Args:
        embeddings: [M, D], float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        ids: [M] integers on the same device.
        temperature: divides the similarities; a number or a tensor of one element, which gets its gradient.
        normalize: bring rows to length one first. A row of zeros stays zero and gets a zero gradient.
        reduction: "mean" over the rows that have positives, "sum", or "none" (0 for rows without positives).
        group, impl: as in `nt_xent`.

    Returns:
        A float32 scalar (float64 for float64 inputs), or [M] losses for reduction="none". Without any positives: 0.

    Raises:
        ValueError: shapes, dtypes, devices, temperature or an option do not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    with agreed("sup_con", "embeddings", embeddings, group):
        check_matrix("sup_con", "embeddings", embeddings)
        check_not_empty("sup_con", "embeddings", embeddings)
        check_indices("sup_con", "ids", ids, embeddings.shape[0], "embeddings", embeddings.device)
        check_reduction("sup_con", reduction)
        scale = as_scalar("sup_con", "temperature", temperature, embeddings).reciprocal()
        chosen = choose("sup_con", "similarity", impl, embeddings)
    ids = ids.long()  # ranks that chose different integers gather the same number of bytes
    dense = _dense.products_in("sup_con", chosen, embeddings.shape[0], group, embeddings)
    if dense is not None:
        rows, count = _dense.sup_con(embeddings, ids, scale, normalize, group, dense)
    else:
        z, name = prepare(embeddings, normalize, compute_dtype(embeddings)), group_name(group)
        everyone, everyones_ids = gather(z, name) if name else None, gather(ids, name)
        own = rank(group) * z.shape[0]
        kept = room(z, None, name, chosen)
        rows = sup_con_rows(z, everyone, everyones_ids, scale, own, scale.requires_grad, name, chosen, kept)[0]
        count = (classes_of(everyones_ids)[1] > 0).sum()
    return reduce_rows(rows, reduction, group, count.clamp(min=1))


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    normalize: bool = True,
    group: ProcessGroup | None = None,
    impl: str = "auto",
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023): every image-text pair is a yes-or-no question.

    Sum over all N x N pairs of -log sigmoid(+-(logit_scale * image.text + logit_bias)), divided by N.

    Args:
        image: [N, D] embeddings, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        text: [N, D] embeddings, row i belonging to image i; same dtype and device.
        logit_scale: multiplies the similarities (the exp of the parameter: the caller takes the exp); above zero.
        logit_bias: added to them. Both numbers or tensors of one element, which get their gradients.
        normalize: bring rows to length one first. A row of zeros stays zero and gets a zero gradient.
        group, impl: as in `nt_xent`.

    Returns:
        A float32 scalar (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes, devices, scale or bias do not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    with agreed("sigmoid_loss", "image", image, group):
        check_pairs("sigmoid_loss", "text", text, "image", image)
        scale = as_scalar("sigmoid_loss", "logit_scale", logit_scale, image)
        bias = as_scalar("sigmoid_loss", "logit_bias", logit_bias, image, positive=False)
        chosen = choose("sigmoid_loss", "sigmoid", impl, image)
    dense = _dense.products_in("sigmoid_loss", chosen, image.shape[0], group, image)
    if dense is not None:
        rows = _dense.sigmoid_loss(image, text, scale, bias, normalize, group, dense)
    else:
        dtype, name = compute_dtype(image), group_name(group)
        a, b = prepare(image, normalize, dtype), prepare(text, normalize, dtype)
        everyone = (gather(a, name), gather(b, name)) if name else (None, None)
        slope = scale.requires_grad or bias.requires_grad
        rows = sigmoid_rows(a, b, *everyone, scale, bias, slope, name, chosen)[0]
    return reduce_rows(rows, "mean", group, image.shape[0] * world_size(group))


FAMILIES.update(
    nt_xent="similarity", clip_loss="similarity", info_nce="similarity", sup_con="similarity", sigmoid_loss="sigmoid"
)
