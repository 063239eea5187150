"""Similarity attention on GPUs: one walk over the tokens gives the map and the pooled tokens.

A program has BLOCK_T texts of one image and walks over a part of its tokens, BLOCK_N at a time. The
cosines go to the map as they are made, and through a running softmax into the pooled tokens; a
tile's second reading, for the pooling, comes from the cache. Where there are few images the tokens
are split, and the parts are put together afterwards. Nothing is atomic.

The backward pass has a kernel for the gradient of the cosines and one for that of the tokens. The
softmax' usual correction (the mean of its gradient) is zero here: the pooled vector is made a unit
afterwards, so that it does not depend on the sum of the weights.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from medplat_kernels.compile_gate import Specimen

from .triton import constants

LOG2E = tl.constexpr(1.4426950408889634)
PRECISION = tl.constexpr("ieee")
STEP = tl.constexpr(32)  # columns of a product that gives cosines: a thread holds them all


@triton.jit
def _rows(x, number, rows, count, part, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns `part` of `rows` of matrix `number` of a contiguous (matrices, count, D), float32."""
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    at = x + (number.to(tl.int64) * count + rows)[:, None] * D + d[None, :]
    mask = (rows < count)[:, None] & (d < D)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _counted(mask, image, n, tokens):
    """Whether the softmax counts token `n` of an image."""
    counted = n < tokens
    if mask is not None:
        counted = counted & (tl.load(mask + image.to(tl.int64) * tokens + n, mask=counted) != 0)
    return counted


@triton.jit
def similarity_attention_forward_kernel(
    t, v, temperature, mask, map, inverse, parts, tops, totals,
    images, texts, tokens, per_split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Map and reciprocal norms of the tokens; sums, unfinished, of a part of the tokens.

    t: (images, texts, D) unit rows, float32. v: (images, tokens, D). map: (images, texts, tokens).
    inverse: (images, tokens). parts: (splits, images, texts, D), sum of 2^(score - top) times
    tokens. tops, totals: (splits, images, texts), largest score in base 2, sum of the powers.
    """
    PARTS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    blocks = (texts + BLOCK_T - 1) // BLOCK_T
    pid = tl.program_id(0)
    image, split = pid // blocks % images, pid // (blocks * images)
    row = pid % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    sharpness = LOG2E / tl.load(temperature)
    top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    acc = ()
    for _ in tl.static_range(PARTS):
        acc = acc + (tl.zeros((BLOCK_T, BLOCK_D), tl.float32),)  # noqa: RUF005
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, tokens), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        cosines = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        squares = tl.zeros((BLOCK_N,), tl.float32)
        for part in range((D + STEP - 1) // STEP):
            values = _rows(v, image, n, tokens, part, D, STEP)
            unit = _rows(t, image, row, texts, part, D, STEP)
            cosines += tl.dot(unit, tl.trans(values), input_precision=PRECISION)
            squares += tl.sum(values * values, 1)
        norms = tl.where(squares > 0.0, 1.0 / tl.sqrt(tl.where(squares > 0.0, squares, 1.0)), 0.0)
        cosines *= norms[None, :]
        line = image.to(tl.int64) * texts + row
        inside = (row < texts)[:, None] & (n < tokens)[None, :]
        tl.store(map + line[:, None] * tokens + n[None, :], cosines, mask=inside)
        # Programs of all blocks of texts compute the same norms and store the same values.
        tl.store(inverse + image.to(tl.int64) * tokens + n, norms, mask=n < tokens)

        counted = _counted(mask, image, n, tokens)
        s = tl.where(counted[None, :], cosines * sharpness, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - finite[:, None])
        shrink = tl.exp2(top - finite)
        total = total * shrink + tl.sum(p, 1)
        top = higher
        p = p * norms[None, :]
        added = ()
        for part in tl.static_range(PARTS):
            values = _rows(v, image, n, tokens, part, D, BLOCK_D)
            sum_ = tl.dot(p, values, input_precision=PRECISION)
            added = added + (acc[part] * shrink[:, None] + sum_,)  # noqa: RUF005
        acc = added
    line = (split * images + image).to(tl.int64) * texts + row
    tl.store(tops + line, top, mask=row < texts)
    tl.store(totals + line, total, mask=row < texts)
    for part in tl.static_range(PARTS):
        d = part * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = (row < texts)[:, None] & (d < D)[None, :]
        tl.store(parts + line[:, None] * D + d[None, :], acc[part], mask=inside)


@triton.jit
def similarity_attention_backward_map_kernel(
    to_pooled, v, temperature, mask, map, inverse, lse, grad_map, to_map, along, heats,
    images, texts, tokens,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of the cosines: what came to the map, and what comes by way of the weights.

    to_pooled: (images, texts, D), gradient of the pooled tokens. Also, for each block of texts,
    along (blocks, images, tokens), the product of a unit token and its gradient; and heats, one
    number a program: sum of cosine times gradient of score.
    """
    PARTS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    blocks, steps = (texts + BLOCK_T - 1) // BLOCK_T, (tokens + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    image, block = pid // (blocks * steps), pid // steps % blocks
    row = block * BLOCK_T + tl.arange(0, BLOCK_T)
    n = pid % steps * BLOCK_N + tl.arange(0, BLOCK_N)
    to_weights = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for part in range(PARTS):
        pull = _rows(to_pooled, image, row, texts, part, D, BLOCK_D)
        values = _rows(v, image, n, tokens, part, D, BLOCK_D)
        to_weights += tl.dot(pull, tl.trans(values), input_precision=PRECISION)
    line = image.to(tl.int64) * texts + row
    at = line[:, None] * tokens + n[None, :]
    inside = (row < texts)[:, None] & (n < tokens)[None, :]
    norms = tl.load(inverse + image.to(tl.int64) * tokens + n, mask=n < tokens, other=0.0)
    heat = tl.load(temperature)
    cosines = tl.load(map + at, mask=inside, other=0.0)
    sums = tl.load(lse + line, mask=row < texts, other=0.0)
    seen = inside & _counted(mask, image, n, tokens)[None, :]
    weights = tl.where(seen, tl.exp2((cosines / heat - sums[:, None]) * LOG2E), 0.0)
    shared = weights * to_weights * norms[None, :]
    slope = shared / heat + tl.load(grad_map + at, mask=inside, other=0.0)
    tl.store(to_map + at, slope, mask=inside)
    beside = (block * images + image).to(tl.int64) * tokens + n
    tl.store(along + beside, tl.sum(slope * cosines + shared, 0), mask=n < tokens)
    tl.store(heats + pid, tl.sum(tl.sum(shared * cosines, 1), 0))


@triton.jit
def similarity_attention_backward_tokens_kernel(
    t, to_pooled, v, temperature, mask, map, inverse, lse, to_map, along, dv,
    images, texts, tokens,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_N tokens in BLOCK_D columns, summed over the texts in order."""
    PARTS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    steps = (tokens + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    part, image = pid % PARTS, pid // (PARTS * steps)
    n = pid // PARTS % steps * BLOCK_N + tl.arange(0, BLOCK_N)
    heat = tl.load(temperature)
    counted = _counted(mask, image, n, tokens)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    radial = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(0, (texts + BLOCK_T - 1) // BLOCK_T):
        row = block * BLOCK_T + tl.arange(0, BLOCK_T)
        line = image.to(tl.int64) * texts + row
        at = line[:, None] * tokens + n[None, :]
        inside = (row < texts)[:, None] & (n < tokens)[None, :]
        cosines = tl.load(map + at, mask=inside, other=0.0)
        sums = tl.load(lse + line, mask=row < texts, other=0.0)
        score = (cosines / heat - sums[:, None]) * LOG2E
        weights = tl.where(inside & counted[None, :], tl.exp2(score), 0.0)
        slope = tl.load(to_map + at, mask=inside, other=0.0)
        unit = _rows(t, image, row, texts, part, D, BLOCK_D)
        acc += tl.dot(tl.trans(slope), unit, input_precision=PRECISION)
        pull = _rows(to_pooled, image, row, texts, part, D, BLOCK_D)
        acc += tl.dot(tl.trans(weights), pull, input_precision=PRECISION)
        beside = (block * images + image).to(tl.int64) * tokens + n
        radial += tl.load(along + beside, mask=n < tokens, other=0.0)
    norms = tl.load(inverse + image.to(tl.int64) * tokens + n, mask=n < tokens, other=0.0)
    values = _rows(v, image, n, tokens, part, D, BLOCK_D)
    out = acc * norms[:, None] - values * (norms * norms * radial)[:, None]
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    at = dv + (image.to(tl.int64) * tokens + n)[:, None] * D + d[None, :]
    tl.store(at, out.to(dv.dtype.element_ty), mask=(n < tokens)[:, None] & (d < D)[None, :])


def _specimen(kernel: Any, dtype: str, warps: int) -> Specimen:
    """A kernel as `triton.py` launches it for tokens of 768 numbers."""
    counts = ("images", "texts", "tokens", "per_split")
    launch = constants(768, warps)
    types = {name: "*fp32" for name in kernel.arg_names if name not in launch and name != "mask"}
    types |= {name: "i32" for name in counts if name in types}
    types |= {name: f"*{dtype}" for name in ("v", "dv") if name in types}
    return Specimen(
        name=f"{kernel.__name__} {dtype} D=768",
        kernel=kernel,
        arguments=types,
        constants={name: value for name, value in launch.items() if name in kernel.arg_names},
        unaligned=frozenset(counts),
        options={"num_warps": warps, "num_stages": launch["num_stages"]},
    )


SPECIMENS = (
    _specimen(similarity_attention_forward_kernel, "fp32", 16),
    _specimen(similarity_attention_forward_kernel, "bf16", 16),
    _specimen(similarity_attention_backward_map_kernel, "fp32", 8),
    _specimen(similarity_attention_backward_tokens_kernel, "bf16", 8),
)
