"""Triton kernels of linear cross-entropy. Kept tokens stand first in `order`, and their number lies on the device.

Programs beyond that number end at once: ignored tokens cost a launch, and the host never waits to learn how many there
are. Nothing is written twice, so there are no atomics and the bits are the same every run. Addresses are 64 bit.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _logits(
    hidden, weight, bias, row, row_in, col, col_in, features, hidden_stride, weight_stride, softcap,
    BIAS: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[BM, BN] logits of some tokens and classes, capped."""
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, features, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(
            hidden + row[:, None] * hidden_stride + k[None, :], row_in[:, None] & (k < features)[None, :], other=0.0
        )
        b = tl.load(
            weight + col[:, None] * weight_stride + k[None, :], col_in[:, None] & (k < features)[None, :], other=0.0
        )
        acc = tl.dot(a.to(KIND), tl.trans(b.to(KIND)), acc, input_precision=PRECISION)
    if BIAS:
        acc += tl.load(bias + col, col_in, other=0.0).to(tl.float32)[None, :]
    if CAP:
        acc = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(acc * (2.0 * LOG2_E / softcap))))
    return acc


@triton.jit
def _join(values, col, top, best, total, moment, DETAILS: tl.constexpr):
    """Take [BM, BN] logits (-inf where there is no class) into the running maximum, its class and the sums below it."""
    tallest = tl.max(values, 1)
    highest = tl.maximum(top, tallest)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    powers = tl.exp2((values - base[:, None]) * LOG2_E)
    shrink = tl.exp2((top - base) * LOG2_E)
    total = total * shrink + tl.sum(powers, 1)
    if DETAILS:
        moment = moment * shrink + tl.sum(tl.where(values == float("-inf"), 0.0, powers * values), 1)
        first = tl.min(tl.where(values == tallest[:, None], col.to(tl.int32)[None, :], 2**31 - 1), 1)
        best = tl.where(tallest > top, first, best)
    return highest, best, total, moment


@triton.jit
def statistics_kernel(
    hidden, weight, bias, labels, order, count, lse_out, target_out, sum_out, top_out, best_out, moment_out,
    tokens, classes, features, hidden_stride, weight_stride, span, softcap,
    BIAS: tl.constexpr, CAP: tl.constexpr, DETAILS: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Statistics of kept tokens over `span` classes, at [split, token]; grid (blocks of tokens, splits of classes)."""
    kept = tl.load(count)
    if tl.program_id(0) * BM >= kept:
        return
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = i < kept
    row = tl.load(order + i, inside, other=0)
    label = tl.load(labels + row, inside, other=-1)
    split = tl.program_id(1).to(tl.int64)
    top = tl.full([BM], float("-inf"), tl.float32)
    best = tl.zeros([BM], tl.int32)
    total = tl.zeros([BM], tl.float32)
    moment = tl.zeros([BM], tl.float32)
    target = tl.zeros([BM], tl.float32)
    plain = tl.zeros([BM], tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, classes), BN):
        col = (start + tl.arange(0, BN)).to(tl.int64)
        valid = (col < classes)[None, :]
        values = _logits(
            hidden, weight, bias, row, inside, col, col < classes, features, hidden_stride, weight_stride, softcap,
            BIAS, CAP, PRECISION, KIND, BM, BN, BK,
        )  # fmt: skip
        plain += tl.sum(tl.where(valid, values, 0.0), 1)
        target += tl.sum(tl.where(valid & (col[None, :] == label[:, None]), values, 0.0), 1)
        top, best, total, moment = _join(tl.where(valid, values, float("-inf")), col, top, best, total, moment, DETAILS)
    at = split * tokens + row
    tl.store(lse_out + at, top + tl.log2(total) * LN_2, inside)
    tl.store(target_out + at, target, inside)
    tl.store(sum_out + at, plain, inside)
    if DETAILS:
        tl.store(top_out + at, top, inside)
        tl.store(best_out + at, best, inside)
        tl.store(moment_out + at, moment / total, inside)


@triton.jit
def panel_kernel(
    hidden, weight, bias, labels, order, count, lse, of_lse, of_target, of_total, gain, panel,
    first_row, first_col, width, panel_stride, features, hidden_stride, weight_stride, softcap,
    GRADIENT: tl.constexpr, GAIN: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
    KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """panel[i, j] = logit of kept token first_row + i and class first_col + j, or (GRADIENT) the derivative by it.

    Grid (blocks of tokens, blocks of classes).
    """
    kept = tl.load(count)
    if first_row + tl.program_id(0) * BM >= kept:
        return
    local = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = first_row + local < kept
    row = tl.load(order + first_row + local, inside, other=0)
    j = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    col = first_col + j
    values = _logits(
        hidden, weight, bias, row, inside, col, j < width, features, hidden_stride, weight_stride, softcap,
        BIAS, CAP, PRECISION, KIND, BM, BN, BK,
    )  # fmt: skip
    if GRADIENT:
        label = tl.load(labels + row, inside, other=-1)
        shift = tl.load(lse + row, inside, other=0.0)
        grad = tl.exp2((values - shift[:, None]) * LOG2_E) * tl.load(of_lse + row, inside, other=0.0)[:, None]
        grad += tl.load(of_total + row, inside, other=0.0)[:, None]
        at_label = tl.load(of_target + row, inside, other=0.0)
        grad += tl.where(col[None, :] == label[:, None], at_label[:, None], 0.0)
        if CAP:
            grad *= 1.0 - (values / softcap) * (values / softcap)
        if GAIN:
            grad *= tl.load(gain)
        values = grad
    at = panel + local[:, None] * panel_stride + j[None, :]
    tl.store(at, values.to(KIND), inside[:, None] & (j < width)[None, :])


@triton.jit
def softmax_kernel(
    panel, labels, order, count, upstream, lse_out, target_out, sum_out, best_out, moment_out,
    first_row, classes, panel_stride, softcap, z_loss, smoothing,
    GRADIENT: tl.constexpr, CAP: tl.constexpr, DETAILS: tl.constexpr, KIND: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Statistics of one kept token from its row of capped logits, which then becomes its gradient, in place."""
    local = tl.program_id(0).to(tl.int64)
    if first_row + local >= tl.load(count):
        return
    row = tl.load(order + first_row + local)
    label = tl.load(labels + row)
    top = tl.full([1], float("-inf"), tl.float32)
    best = tl.zeros([1], tl.int32)
    total = tl.zeros([1], tl.float32)
    moment = tl.zeros([1], tl.float32)
    target = tl.zeros([1], tl.float32)
    plain = tl.zeros([1], tl.float32)
    for start in range(0, classes, BN):
        col = (start + tl.arange(0, BN)).to(tl.int64)
        valid = (col < classes)[None, :]
        values = tl.load((panel + local * panel_stride + col)[None, :], valid, other=0.0).to(tl.float32)
        plain += tl.sum(values, 1)
        target += tl.sum(tl.where(valid & (col == label)[None, :], values, 0.0), 1)
        top, best, total, moment = _join(tl.where(valid, values, float("-inf")), col, top, best, total, moment, DETAILS)
    lse = top + tl.log2(total) * LN_2
    one = tl.arange(0, 1)
    tl.store(lse_out + row + one, lse)
    tl.store(target_out + row + one, target)
    tl.store(sum_out + row + one, plain)
    if DETAILS:
        tl.store(best_out + row + one, best)
        tl.store(moment_out + row + one, moment / total)
    if GRADIENT:
        weight = tl.load(upstream + row).to(tl.float32)
        of_lse = (weight * (1.0 + 2.0 * z_loss * lse))[:, None]
        of_total = -weight * smoothing / classes
        of_target = weight * (smoothing - 1.0)
        for start in range(0, classes, BN):
            col = (start + tl.arange(0, BN)).to(tl.int64)
            valid = (col < classes)[None, :]
            at = (panel + local * panel_stride + col)[None, :]
            values = tl.load(at, valid, other=0.0).to(tl.float32)
            grad = tl.exp2((values - lse[:, None]) * LOG2_E) * of_lse + of_total
            grad += tl.where((col == label)[None, :], of_target, 0.0)
            if CAP:
                grad *= 1.0 - (values / softcap) * (values / softcap)
            tl.store(at, grad.to(KIND), valid)


@triton.jit
def product_kernel(
    panel, right, out, low, order, count, gain, first_row, first_col, width, panel_stride, features, right_stride,
    out_stride,
    BY_TOKEN: tl.constexpr, ADD: tl.constexpr, READ_LOW: tl.constexpr, WRITE_LOW: tl.constexpr, GAIN: tl.constexpr,
    PRECISION: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BY_TOKEN: out[token] = panel @ weight's classes; else out[class] = panel.T @ hidden's tokens.

    ADD: to what is there. READ_LOW, WRITE_LOW: the sum there stands in `out` and `low`, as `_linear_ce_wide` has it, is
    left so. Grid (blocks of tokens or classes, blocks of features).
    """
    rows_left = tl.load(count) - first_row
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    if BY_TOKEN:
        if tl.program_id(0) * BM >= rows_left:
            return
        m_in = m < rows_left
        length = width.to(tl.int64)
        at_m = tl.load(order + first_row + m, m_in, other=0)
    else:
        if ADD:  # noqa: SIM102  # known at compile time
            if rows_left <= 0:
                return
        m_in = m < width
        length = rows_left
        at_m = first_col + m
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, length, BK):
        k = (start + tl.arange(0, BK)).to(tl.int64)
        k_in = k < length
        if BY_TOKEN:
            left = panel + m[:, None] * panel_stride + k[None, :]
            at_k = first_col + k
        else:
            left = panel + m[:, None] + k[None, :] * panel_stride
            at_k = tl.load(order + first_row + k, k_in, other=0)
        a = tl.load(left, m_in[:, None] & k_in[None, :], other=0.0)
        b = tl.load(
            right + at_k[:, None] * right_stride + n[None, :], k_in[:, None] & (n < features)[None, :], other=0.0
        )
        acc = tl.dot(a.to(KIND), b.to(KIND), acc, input_precision=PRECISION)
    if GAIN:
        acc = acc / tl.load(gain)
    place = at_m[:, None] * out_stride + n[None, :]
    valid = m_in[:, None] & (n < features)[None, :]
    if READ_LOW:
        high = tl.load(out + place, valid, other=0.0).to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        below = tl.load(low + place, valid, other=0).to(tl.uint32) << 8
        acc += (high | below).to(tl.float32, bitcast=True)
    elif ADD:
        acc += tl.load(out + place, valid, other=0.0).to(tl.float32)
    if WRITE_LOW:
        bits = acc.to(tl.uint32, bitcast=True)
        bits = tl.where(acc == acc, bits + 0x80, bits)  # a NaN rounded up could become a number
        half = (bits >> 16).to(tl.uint16).to(out.dtype.element_ty, bitcast=True)
        tl.store(out + place, half, valid)
        tl.store(low + place, ((bits >> 8) & 0xFF).to(tl.uint8), valid)
    else:
        tl.store(out + place, acc, valid)


@triton.jit
def columns_kernel(
    panel, out, count, gain, first_row, first_col, width, panel_stride,
    ADD: tl.constexpr, GAIN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[class] = sum of the panel's column (float32); grid (blocks of classes)."""
    rows_left = tl.load(count) - first_row
    j = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros([BN], tl.float32)
    for start in range(0, rows_left, BM):
        i = (start + tl.arange(0, BM)).to(tl.int64)
        part = tl.load(
            panel + i[:, None] * panel_stride + j[None, :], (i < rows_left)[:, None] & (j < width)[None, :], other=0.0
        )
        acc += tl.sum(part.to(tl.float32), 0)
    if GAIN:
        acc = acc / tl.load(gain)
    if ADD:
        acc += tl.load(out + first_col + j, j < width, other=0.0)
    tl.store(out + first_col + j, acc, j < width)
