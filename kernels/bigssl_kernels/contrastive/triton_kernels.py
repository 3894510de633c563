"""The Triton kernels: one reduces rows of s = scale * rows @ cols.T (+ bias), one differentiates what came of it.

Both walk over the columns for one block of rows, so nothing is written twice: no atomics, the same bits every run. The
scale multiplies after the product, in float32 and together with log2(e), so that exp2 serves for exp.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _product(
    left, right, held, i, j, m, n, features,
    SINGLE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """[BM, BN] tile of left @ right.T; `held` is the rows' tile where all features fit in one block."""
    acc = tl.zeros([BM, BN], tl.float32)
    d = tl.arange(0, BD)
    if SINGLE:
        b = tl.load(right + j[:, None] * features + d[None, :], (j < n)[:, None] & (d < features)[None, :], other=0.0)
        acc = tl.dot(held, tl.trans(b), acc, input_precision=PRECISION)
    else:
        for start in range(0, features, BD):
            k = start + d
            a = tl.load(
                left + i[:, None] * features + k[None, :], (i < m)[:, None] & (k < features)[None, :], other=0.0
            )
            b = tl.load(
                right + j[:, None] * features + k[None, :], (j < n)[:, None] & (k < features)[None, :], other=0.0
            )
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _softplus_of_minus(x):
    """log(1 + exp(-x)) for x >= 0, exact where 1 + exp(-x) rounds to 1."""
    e = tl.exp2(-x * LOG2_E)
    u = 1.0 + e
    return tl.where(u == 1.0, e, tl.log2(u) * LN_2 * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def reduce_kernel(
    rows, cols, scale_ptr, bias_ptr, first_out, second_out, third_out, m, n, features, own, span,
    OWN: tl.constexpr, SIGMOID: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, SINGLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Reduce the rows of a block over `span` columns; grid (blocks of rows, splits of the columns).

    Softmax: first_out [splits, m] logsumexp, second_out sum of p_ij times similarity. Sigmoid: first_out sum of
    softplus, second_out and third_out its derivatives by scale and bias. The last two only where SLOPE.
    """
    i = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    scale = tl.load(scale_ptr).to(tl.float32)
    d = tl.arange(0, BD)
    held = tl.zeros([BM, BD], rows.dtype.element_ty)
    if SINGLE:
        held = tl.load(rows + i[:, None] * features + d[None, :], (i < m)[:, None] & (d < features)[None, :], other=0.0)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    moment = tl.zeros([BM], tl.float32)
    count = tl.zeros([BM], tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, n), BN):
        j = (start + tl.arange(0, BN)).to(tl.int64)
        sims = _product(rows, cols, held, i, j, m, n, features, SINGLE, PRECISION, BM, BN, BD)
        valid = (j < n)[None, :]
        if OWN:
            valid = valid & (j[None, :] != (i + own)[:, None])
        if SIGMOID:
            logits = sims * scale + tl.load(bias_ptr).to(tl.float32)
            size = tl.abs(logits)
            total += tl.sum(tl.where(valid, tl.maximum(logits, 0.0) + _softplus_of_minus(size), 0.0), 1)
            if SLOPE:
                share = tl.where(valid, 1.0 / (1.0 + tl.exp2(-logits * LOG2_E)), 0.0)
                moment += tl.sum(share * sims, 1)
                count += tl.sum(share, 1)
        else:
            logits = tl.where(valid, sims * (scale * LOG2_E), float("-inf"))
            highest = tl.maximum(top, tl.max(logits, 1))
            base = tl.where(highest == float("-inf"), 0.0, highest)
            powers = tl.exp2(logits - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(powers, 1)
            if SLOPE:
                moment = moment * shrink + tl.sum(tl.where(valid, powers * sims, 0.0), 1)
            top = highest
    at = split * m + i
    if SIGMOID:
        tl.store(first_out + at, total, i < m)
        if SLOPE:
            tl.store(second_out + at, moment, i < m)
            tl.store(third_out + at, count, i < m)
    else:
        tl.store(first_out + at, tl.where(total == 0.0, top, (top + tl.log2(total)) * LN_2), i < m)
        if SLOPE:
            tl.store(second_out + at, tl.where(total == 0.0, 0.0, moment / total), i < m)


@triton.jit
def gradient_kernel(
    rows, cols, scale_ptr, bias_ptr, row_lse, row_weight, col_lse, col_weight, out, m, n, features, own, span,
    OWN: tl.constexpr, SIGMOID: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, PRECISION: tl.constexpr,
    SINGLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """out[split, i, o] = scale * sum_j w_ij cols[j, o]; grid (blocks of rows, splits of the columns, blocks of o).

    Softmax: w_ij = row_weight_i exp(s_ij - row_lse_i) + col_weight_j exp(s_ij - col_lse_j), the terms that ROW and COL
    ask for. Sigmoid: (row_weight_i + col_weight_j) sigmoid(s_ij + bias).
    """
    i = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    scale = tl.load(scale_ptr).to(tl.float32)
    d = tl.arange(0, BD)
    held = tl.zeros([BM, BD], rows.dtype.element_ty)
    if SINGLE:
        held = tl.load(rows + i[:, None] * features + d[None, :], (i < m)[:, None] & (d < features)[None, :], other=0.0)
    row_scale = tl.zeros([BM], tl.float32)
    row_shift = tl.zeros([BM], tl.float32)
    if ROW:
        row_scale = tl.load(row_weight + i, i < m, other=0.0).to(tl.float32)
        if not SIGMOID:
            row_shift = tl.load(row_lse + i, i < m, other=0.0).to(tl.float32) * LOG2_E
    acc = tl.zeros([BM, BO], tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, n), BN):
        j = (start + tl.arange(0, BN)).to(tl.int64)
        sims = _product(rows, cols, held, i, j, m, n, features, SINGLE, PRECISION, BM, BN, BD)
        weights = tl.zeros([BM, BN], tl.float32)
        if SIGMOID:
            share = 1.0 / (1.0 + tl.exp2(-(sims * scale + tl.load(bias_ptr).to(tl.float32)) * LOG2_E))
            if ROW:
                weights += share * row_scale[:, None]
            if COL:
                weights += share * tl.load(col_weight + j, j < n, other=0.0).to(tl.float32)[None, :]
        else:
            logits = sims * (scale * LOG2_E)
            if ROW:
                weights += tl.exp2(logits - row_shift[:, None]) * row_scale[:, None]
            if COL:
                shift = tl.load(col_lse + j, j < n, other=0.0).to(tl.float32) * LOG2_E
                factor = tl.load(col_weight + j, j < n, other=0.0).to(tl.float32)
                weights += tl.exp2(logits - shift[None, :]) * factor[None, :]
        valid = (j < n)[None, :]
        if OWN:
            valid = valid & (j[None, :] != (i + own)[:, None])
        weights = tl.where(valid, weights, 0.0)
        c = tl.load(cols + j[:, None] * features + o[None, :], (j < n)[:, None] & (o < features)[None, :], other=0.0)
        acc = tl.dot(weights.to(cols.dtype.element_ty), c, acc, input_precision=PRECISION)
    at = out + (split * m + i)[:, None] * features + o[None, :]
    tl.store(at, acc * scale, (i < m)[:, None] & (o < features)[None, :])
