"""Softmax attention inside tiles of maps, as Triton kernels that read q, k and v in place.

One of two rules, on three axes of space (those that a map lacks have one token):

windows         a query sees the keys of its own window; windows of queries and keys go in step.
                Shifted windows: along each axis a token of the rolled map is before or behind the
                seam of the roll, and sees the tokens on its own side.
neighborhoods   a query sees `kernel_size` keys along each axis around it, pushed inward at the
                ends. A program owns a tile of queries and walks over the keys that any of them
                sees. With dilation the tokens of equal remainder are a map of their own.

Nothing is copied, partitioned or padded in memory: a token's place is computed from its number in
the tile. Sums run in float32. The backward pass has no atomics: every program owns what it writes,
so that two runs agree bit by bit; it recomputes the weights from the logarithm of their sum.
Source: Dao et al., FlashAttention, arXiv 2205.14135, algorithms 1 and 4; Liu et al., Swin,
arXiv 2103.14030; Hassani et al., NATTEN, arXiv 2204.07143.

Names: `own` is the side, queries or keys, of which a program has a block, `other` the side it walks
over. (z, y, x) tuples: QUERIES a tile or window of queries, KEYS a window of keys or the kernel
size, MOVE the shift or the dilation, `tiles` their number, `size` the tokens of a map.
"""

# ruff: noqa: RET505 (a kernel compiles what stands behind a constexpr `if` that returns)
from __future__ import annotations

import triton
import triton.language as tl

from .attention_triton import WIDEST, Tiling, block, blocks, neighborhoods, windows
from .compile_gate import Specimen

LOG2E = tl.constexpr(1.4426950408889634)
PRECISION = tl.constexpr("ieee")


@triton.jit
def _first_key(g, length, KERNEL: tl.constexpr):
    """First key that query `g` of a neighborhood sees, along an axis of `length` tokens."""
    return tl.minimum(tl.maximum(g - KERNEL // 2, 0), length - KERNEL)


@triton.jit
def _tile(number, size, SIDE: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr):
    """Along one axis: first token of a tile, its remainder, and the tokens of that remainder."""
    if NEAR:
        rest = number % MOVE
        return number // MOVE * SIDE, rest, (size - rest + MOVE - 1) // MOVE
    else:
        return number * SIDE, 0, size


@triton.jit
def _tiles(number, tiles, size, SIDE: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr):
    """`_tile` along three axes: three tuples of three."""
    z, rest_z, n_z = _tile(number // (tiles[1] * tiles[2]), size[0], SIDE[0], MOVE[0], NEAR)
    y, rest_y, n_y = _tile(number // tiles[2] % tiles[1], size[1], SIDE[1], MOVE[1], NEAR)
    x, rest_x, n_x = _tile(number % tiles[2], size[2], SIDE[2], MOVE[2], NEAR)
    return (z, y, x), (rest_z, rest_y, rest_x), (n_z, n_y, n_x)


@triton.jit
def _own_tile(
    number, heads, tiles, size, SIDE: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """Of the tile of this number: its (batch, head) as one number and as two, and its `_tiles`."""
    per_slab = tiles[0] * tiles[1] * tiles[2]
    first, rest, length = _tiles(number % per_slab, tiles, size, SIDE, MOVE, NEAR)
    number = number // per_slab
    slab = ((number // heads).to(tl.int64), (number % heads).to(tl.int64))
    return number, slab, first, rest, length


@triton.jit
def _keys_seen(first, length, SIDE: tl.constexpr, KERNEL: tl.constexpr):
    """Along one axis: first key that a tile of queries sees, and how many it sees."""
    last = tl.minimum(first + SIDE, length) - 1
    start = _first_key(first, length, KERNEL)
    return start, tl.maximum(_first_key(last, length, KERNEL) + KERNEL - start, 0)


@triton.jit
def _queries_seeing(first, length, SIDE: tl.constexpr, KERNEL: tl.constexpr):
    """Along one axis: first query that sees a tile of keys, and how many do."""
    last = tl.minimum(first + SIDE, length) - 1
    start = tl.where(first < KERNEL, 0, first - KERNEL + 1 + KERNEL // 2)
    end = tl.where(last >= length - KERNEL, length, last + 1 + KERNEL // 2)
    return start, tl.maximum(tl.minimum(end, length) - start, 0)


@triton.jit
def _place(i, first, rest, whole, MOVE: tl.constexpr, NEAR: tl.constexpr):
    """Along one axis: where token `first + i` lies on the map, and what decides who sees whom."""
    if NEAR:
        return (first + i) * MOVE + rest, first + i
    else:
        rolled = first + i + MOVE
        behind = (rolled >= whole).to(tl.int32)
        return rolled - behind * whole, behind


@triton.jit
def _tokens(
    i, count, first, rest, tiles, size, SIDE: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """Tokens `i` of the box `first`, `count`: places, codes (see `_place`), whether they exist.

    SIDE is that of a window on this map: padded, it is `tiles * SIDE` long.
    """
    whole_z, whole_y, whole_x = tiles[0] * SIDE[0], tiles[1] * SIDE[1], tiles[2] * SIDE[2]
    z, code_z = _place(i // (count[1] * count[2]), first[0], rest[0], whole_z, MOVE[0], NEAR)
    y, code_y = _place(i // count[2] % count[1], first[1], rest[1], whole_y, MOVE[1], NEAR)
    x, code_x = _place(i % count[2], first[2], rest[2], whole_x, MOVE[2], NEAR)
    inside = (z < size[0]) & (y < size[1]) & (x < size[2])
    real = inside & (i < count[0] * count[1] * count[2])
    return (z, y, x), (code_z, code_y, code_x), real


@triton.jit
def _pair(queries, keys, TURNED: tl.constexpr):
    """Views of vectors along queries and keys, for a matrix (queries, keys), or turned."""
    if TURNED:
        return queries[None, :], keys[:, None]
    else:
        return queries[:, None], keys[None, :]


@triton.jit
def _sees(
    seen, query, key, length, KERNEL: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """`seen` and, along one axis, the query sees the key."""
    if NEAR:
        start, key = _pair(_first_key(query, length, KERNEL), key, TURNED)
        seen = seen & (key >= start) & (key < start + KERNEL)
    elif MOVE:
        query, key = _pair(query, key, TURNED)
        seen = seen & (query == key)
    return seen


@triton.jit
def _at(place, stride):
    """Elements from the start of a map, which may hold more than 2^31."""
    return place[0].to(tl.int64) * stride[2] + place[1] * stride[3] + place[2] * stride[4]


@triton.jit
def _load(x, slab, place, stride, real, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Tokens of one map (batch, head of `slab`) as rows; zeros where they are not real."""
    at = x + slab[0] * stride[0] + slab[1] * stride[1] + _at(place, stride)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(at + d, mask=real[:, None] & (d < D), other=0.0)


@triton.jit
def _store(x, slab, place, stride, real, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    at = x + slab[0] * stride[0] + slab[1] * stride[1] + _at(place, stride)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    tl.store(at + d, value.to(x.dtype.element_ty), mask=real[:, None] & (d < D))


@triton.jit
def _rows(number, place, size):
    """Number of a token in a contiguous (batch * heads, z, y, x)."""
    volume = number.to(tl.int64) * (size[0] * size[1] * size[2])
    return volume + (place[0] * size[1] + place[1]) * size[2] + place[2]


@triton.jit
def _scores(
    q, k, bias, head, iq, ik, code_q, code_k, real_q, real_k, length, scale,
    NQ: tl.constexpr, NK: tl.constexpr, KEYS: tl.constexpr, MOVE: tl.constexpr, NEAR: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """(queries, keys), or turned: scores in base 2, -inf where the key is not seen."""
    real_q, real_k = _pair(real_q, real_k, TURNED)
    seen = real_q & real_k
    seen = _sees(seen, code_q[0], code_k[0], length[0], KEYS[0], MOVE[0], NEAR, TURNED)
    seen = _sees(seen, code_q[1], code_k[1], length[1], KEYS[1], MOVE[1], NEAR, TURNED)
    seen = _sees(seen, code_q[2], code_k[2], length[2], KEYS[2], MOVE[2], NEAR, TURNED)
    left, right = (k, q) if TURNED else (q, k)
    s = tl.dot(left, tl.trans(right), input_precision=PRECISION) * (scale * LOG2E)
    if bias is not None:
        iq, ik = _pair(iq, ik, TURNED)
        at = bias + head * (NQ * NK) + iq * NK + ik
        s += tl.load(at, mask=seen, other=0.0).to(tl.float32) * LOG2E
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _weights(s, lse):
    """Softmax weights of scores; 0 where a key is not seen, -inf - -inf included."""
    return tl.where(s == float("-inf"), 0.0, tl.exp2(s - lse * LOG2E))


@triton.jit
def _windows_of_keys(
    first_q, rest, length, QUERIES: tl.constexpr, KEYS: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """Box of keys that a tile of queries walks over: first token and extent along three axes."""
    if NEAR:
        z, nz = _keys_seen(first_q[0], length[0], QUERIES[0], KEYS[0])
        y, ny = _keys_seen(first_q[1], length[1], QUERIES[1], KEYS[1])
        x, nx = _keys_seen(first_q[2], length[2], QUERIES[2], KEYS[2])
        return (z, y, x), (nz, ny, nx)
    else:
        z = first_q[0] // QUERIES[0] * KEYS[0]
        y = first_q[1] // QUERIES[1] * KEYS[1]
        x = first_q[2] // QUERIES[2] * KEYS[2]
        return (z, y, x), (KEYS[0], KEYS[1], KEYS[2])


@triton.jit
def tile_attention_forward_kernel(
    q, k, v, bias, out, lse, stride_q, stride_k, stride_v, stride_out,
    heads, size_q, size_k, tiles, scale,
    NEAR: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MOVE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output and logarithm of the sum of exponentials of a block of one tile's queries.

    Maps have axes (batch, head, z, y, x, d), strides of all but the last, which is dense; lse is
    contiguous (batch, head, z, y, x); bias, of windows only, (heads, queries, keys), or None.
    """
    NQ: tl.constexpr = QUERIES[0] * QUERIES[1] * QUERIES[2]
    NK: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    BLOCKS: tl.constexpr = (NQ + BLOCK_Q - 1) // BLOCK_Q
    pid = tl.program_id(0)
    number, slab, first, rest, length = _own_tile(
        pid // BLOCKS, heads, tiles, size_q, QUERIES, MOVE, NEAR
    )
    first_k, count_k = _windows_of_keys(first, rest, length, QUERIES, KEYS, NEAR)

    iq = pid % BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, code, real = _tokens(iq, QUERIES, first, rest, tiles, size_q, QUERIES, MOVE, NEAR)
    queries = _load(q, slab, place, stride_q, real, D, BLOCK_D)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, count_k[0] * count_k[1] * count_k[2], BLOCK_K):
        ik = start + tl.arange(0, BLOCK_K)
        at_k, code_k, real_k = _tokens(ik, count_k, first_k, rest, tiles, size_k, KEYS, MOVE, NEAR)
        keys = _load(k, slab, at_k, stride_k, real_k, D, BLOCK_D)
        s = _scores(
            queries, keys, bias, slab[1], iq, ik, code, code_k, real, real_k, length, scale,
            NQ, NK, KEYS, MOVE, NEAR, False,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(s, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - finite[:, None])
        shrink = tl.exp2(top - finite)
        values = _load(v, slab, at_k, stride_v, real_k, D, BLOCK_D)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
        top = higher
    total = tl.where(total == 0.0, 1.0, total)
    acc = acc / total[:, None]
    _store(out, slab, place, stride_out, real, acc, D, BLOCK_D)
    tl.store(lse + _rows(number, place, size_q), (top + tl.log2(total)) / LOG2E, mask=real)


@triton.jit
def tile_attention_backward_queries_kernel(
    grad, q, k, v, bias, out, lse, inner, dq,
    stride_grad, stride_q, stride_k, stride_v, stride_out, stride_dq,
    heads, size_q, size_k, tiles, scale,
    NEAR: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MOVE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; also their `inner` = sum of grad * out, laid out as lse."""
    NQ: tl.constexpr = QUERIES[0] * QUERIES[1] * QUERIES[2]
    NK: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    BLOCKS: tl.constexpr = (NQ + BLOCK_Q - 1) // BLOCK_Q
    pid = tl.program_id(0)
    number, slab, first, rest, length = _own_tile(
        pid // BLOCKS, heads, tiles, size_q, QUERIES, MOVE, NEAR
    )
    first_k, count_k = _windows_of_keys(first, rest, length, QUERIES, KEYS, NEAR)

    iq = pid % BLOCKS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, code, real = _tokens(iq, QUERIES, first, rest, tiles, size_q, QUERIES, MOVE, NEAR)
    queries = _load(q, slab, place, stride_q, real, D, BLOCK_D)
    slopes = _load(grad, slab, place, stride_grad, real, D, BLOCK_D)
    made = _load(out, slab, place, stride_out, real, D, BLOCK_D)
    along = tl.sum(slopes.to(tl.float32) * made.to(tl.float32), 1)
    row = _rows(number, place, size_q)
    tl.store(inner + row, along, mask=real)
    sums = tl.load(lse + row, mask=real, other=0.0)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, count_k[0] * count_k[1] * count_k[2], BLOCK_K):
        ik = start + tl.arange(0, BLOCK_K)
        at_k, code_k, real_k = _tokens(ik, count_k, first_k, rest, tiles, size_k, KEYS, MOVE, NEAR)
        keys = _load(k, slab, at_k, stride_k, real_k, D, BLOCK_D)
        s = _scores(
            queries, keys, bias, slab[1], iq, ik, code, code_k, real, real_k, length, scale,
            NQ, NK, KEYS, MOVE, NEAR, False,
        )  # fmt: skip
        values = _load(v, slab, at_k, stride_v, real_k, D, BLOCK_D)
        dp = tl.dot(slopes, tl.trans(values), input_precision=PRECISION)
        ds = _weights(s, sums[:, None]) * (dp - along[:, None])
        acc += tl.dot(ds.to(keys.dtype), keys, input_precision=PRECISION)
    _store(dq, slab, place, stride_dq, real, acc * scale, D, BLOCK_D)


@triton.jit
def tile_attention_backward_keys_kernel(
    grad, q, k, v, bias, lse, inner, dk, dv,
    stride_grad, stride_q, stride_k, stride_v, stride_dk, stride_dv,
    heads, size_q, size_k, tiles, scale,
    NEAR: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, MOVE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of one tile's keys and values; neighborhoods tile keys as queries."""
    NQ: tl.constexpr = QUERIES[0] * QUERIES[1] * QUERIES[2]
    NK: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    OWN: tl.constexpr = QUERIES if NEAR else KEYS
    BLOCKS: tl.constexpr = (OWN[0] * OWN[1] * OWN[2] + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    number, slab, first, rest, length = _own_tile(
        pid // BLOCKS, heads, tiles, size_k, OWN, MOVE, NEAR
    )
    if NEAR:
        z, nz = _queries_seeing(first[0], length[0], OWN[0], KEYS[0])
        y, ny = _queries_seeing(first[1], length[1], OWN[1], KEYS[1])
        x, nx = _queries_seeing(first[2], length[2], OWN[2], KEYS[2])
        first_q, count_q = (z, y, x), (nz, ny, nx)
    else:
        z = first[0] // KEYS[0] * QUERIES[0]
        y = first[1] // KEYS[1] * QUERIES[1]
        x = first[2] // KEYS[2] * QUERIES[2]
        first_q, count_q = (z, y, x), (QUERIES[0], QUERIES[1], QUERIES[2])

    ik = pid % BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    at_k, code_k, real_k = _tokens(ik, OWN, first, rest, tiles, size_k, OWN, MOVE, NEAR)
    keys = _load(k, slab, at_k, stride_k, real_k, D, BLOCK_D)
    values = _load(v, slab, at_k, stride_v, real_k, D, BLOCK_D)
    acc_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    acc_v = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, count_q[0] * count_q[1] * count_q[2], BLOCK_Q):
        iq = start + tl.arange(0, BLOCK_Q)
        place, code, real = _tokens(iq, count_q, first_q, rest, tiles, size_q, QUERIES, MOVE, NEAR)
        queries = _load(q, slab, place, stride_q, real, D, BLOCK_D)
        slopes = _load(grad, slab, place, stride_grad, real, D, BLOCK_D)
        row = _rows(number, place, size_q)
        sums = tl.load(lse + row, mask=real, other=0.0)
        along = tl.load(inner + row, mask=real, other=0.0)
        s = _scores(
            queries, keys, bias, slab[1], iq, ik, code, code_k, real, real_k, length, scale,
            NQ, NK, KEYS, MOVE, NEAR, True,
        )  # fmt: skip
        p = _weights(s, sums[None, :])
        acc_v += tl.dot(p.to(slopes.dtype), slopes, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(slopes), input_precision=PRECISION)
        ds = p * (dp - along[None, :])
        acc_k += tl.dot(ds.to(queries.dtype), queries, input_precision=PRECISION)
    _store(dk, slab, at_k, stride_dk, real_k, acc_k * scale, D, BLOCK_D)
    _store(dv, slab, at_k, stride_dv, real_k, acc_v, D, BLOCK_D)


@triton.jit
def tile_attention_backward_bias_kernel(
    grad, q, k, v, bias, lse, inner, parts,
    stride_grad, stride_q, stride_k, stride_v,
    batch, heads, size_q, size_k, tiles, scale, splits,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, MOVE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One part of the bias' gradient: windows `part`, `part + splits`, ... of one head, in order.

    parts: (splits, heads, queries, keys) float32, to be summed.
    """
    NQ: tl.constexpr = QUERIES[0] * QUERIES[1] * QUERIES[2]
    NK: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    BLOCKS_K: tl.constexpr = (NK + BLOCK_K - 1) // BLOCK_K
    BLOCKS: tl.constexpr = (NQ + BLOCK_Q - 1) // BLOCK_Q * BLOCKS_K
    pid = tl.program_id(0)
    head, part = pid // BLOCKS % heads, pid // BLOCKS // heads
    iq = pid % BLOCKS // BLOCKS_K * BLOCK_Q + tl.arange(0, BLOCK_Q)
    ik = pid % BLOCKS % BLOCKS_K * BLOCK_K + tl.arange(0, BLOCK_K)
    per_slab = tiles[0] * tiles[1] * tiles[2]
    acc = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for window in range(part, batch * per_slab, splits):
        number = window // per_slab * heads + head
        slab = ((window // per_slab).to(tl.int64), head.to(tl.int64))
        first, rest, length = _tiles(window % per_slab, tiles, size_q, QUERIES, MOVE, False)
        first_k, _ = _windows_of_keys(first, rest, length, QUERIES, KEYS, False)
        place, code, real = _tokens(iq, QUERIES, first, rest, tiles, size_q, QUERIES, MOVE, False)
        at_k, code_k, real_k = _tokens(ik, KEYS, first_k, rest, tiles, size_k, KEYS, MOVE, False)
        row = _rows(number, place, size_q)
        s = _scores(
            _load(q, slab, place, stride_q, real, D, BLOCK_D).to(tl.float32),
            _load(k, slab, at_k, stride_k, real_k, D, BLOCK_D).to(tl.float32),
            bias, slab[1], iq, ik, code, code_k, real, real_k, length, scale,
            NQ, NK, KEYS, MOVE, False, False,
        )  # fmt: skip
        p = _weights(s, tl.load(lse + row, mask=real, other=0.0)[:, None])
        slopes = _load(grad, slab, place, stride_grad, real, D, BLOCK_D).to(tl.float32)
        values = _load(v, slab, at_k, stride_v, real_k, D, BLOCK_D).to(tl.float32)
        dp = tl.dot(slopes, tl.trans(values), input_precision=PRECISION)
        acc += p * (dp - tl.load(inner + row, mask=real, other=0.0)[:, None])
    at = (part * heads + head).to(tl.int64) * (NQ * NK) + iq[:, None] * NK + ik[None, :]
    tl.store(parts + at, acc, mask=(iq < NQ)[:, None] & (ik < NK)[None, :])


MAPS = ("grad", "q", "k", "v", "bias", "out", "dq", "dk", "dv")
KINDS: dict[str, str | tuple[str, ...]] = {
    "lse": "*fp32", "inner": "*fp32", "parts": "*fp32", "scale": "fp32",
    "batch": "i32", "heads": "i32", "splits": "i32",
    "size_q": ("i32",) * 3, "size_k": ("i32",) * 3, "tiles": ("i32",) * 3,
}  # fmt: skip


def _specimen(
    name: str, which: str, dtype: str, tiling: Tiling, width: int, registers: int = 128
) -> Specimen:
    """One kernel as `attention_triton` launches it for contiguous maps."""
    kernel = globals()[f"tile_attention_{which}_kernel"]
    block_q, block_k, warps = blocks(tiling, width, dtype == "fp32", which)
    constants = {
        "NEAR": tiling.near, "QUERIES": tiling.queries, "KEYS": tiling.keys, "MOVE": tiling.move,
        "D": width, "BLOCK_D": block(width, WIDEST), "BLOCK_Q": block_q, "BLOCK_K": block_k,
    }  # fmt: skip
    kinds = {
        **KINDS,
        **{map_: f"*{dtype}" for map_ in MAPS if map_ != "bias" or not tiling.near},
        **{f"stride_{map_}": ("i32",) * 5 for map_ in MAPS},
    }
    return Specimen(
        name=f"tile attention {which} {name} {dtype}",
        kernel=kernel,
        arguments={n: kinds[n] for n in kernel.arg_names if n in kinds},
        constants={n: constants[n] for n in kernel.arg_names if n in constants},
        unaligned=frozenset(n for n in KINDS if not n.startswith(("lse", "inner", "parts"))),
        options={"num_warps": warps},
        registers=registers,
    )


SWIN = windows((56, 56), (8, 8), (8, 8), (4, 4))
SEQUENCE = windows((86,), (86,), (86,), (0,))
PLANE = neighborhoods((56, 56), (7, 7), (1, 1))
VOLUME = neighborhoods((24, 24, 24), (5, 5, 5), (1, 1, 1))
# Those that need most: shifted windows, DuoFormer's sequences, neighborhoods in a plane and in
# space, whose backward pass over the keys works with more coordinates than 128 registers hold.
SPECIMENS = (
    _specimen("sequence of 86", "forward", "fp32", SEQUENCE, 64),
    _specimen("near 7 x 7", "forward", "bf16", PLANE, 32),
    _specimen("near 5 x 5 x 5", "backward_queries", "fp32", VOLUME, 16),
    _specimen("shifted 8 x 8", "backward_queries", "bf16", SWIN, 32),
    _specimen("sequence of 86", "backward_keys", "fp32", SEQUENCE, 64),
    _specimen("shifted 8 x 8", "backward_keys", "bf16", SWIN, 32),
    _specimen("near 5 x 5 x 5", "backward_keys", "bf16", VOLUME, 16, registers=168),
    _specimen("shifted 8 x 8", "backward_bias", "fp32", SWIN, 32),
)
