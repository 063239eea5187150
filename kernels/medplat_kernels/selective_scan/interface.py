"""The public functions of the scan: checks of their arguments, and what goes to the operator.

In a module of its own: importing the backend `selective_scan.torch` binds that name in the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medplat_kernels import dispatch, scan_orders

from .ops import selective_scan_forward


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    order: str | Sequence[str] = "raster",
    grid: Sequence[int] | None = None,
    layout: str = "bdl",
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan over L tokens, in one or several orders in one call.

    Everything is stored at raster positions, whatever the order: nothing has to be flipped or
    permuted before or after. K orders have their own delta, A, B, C, D and delta_bias, and their
    outputs are summed and then gated once.

    Args:
        u: (Bt, D, L); (Bt, L, D) for `layout="bld"`. With K orders (Bt, D, L), read by each of
            them, or (Bt, K*D, L). float32, bfloat16, float16 or float64.
        delta: (Bt, K*D, L), step sizes before bias and softplus.
        A: (K*D, N), real, negative.
        B: (Bt, G, N, L) with G dividing K*D, channel d uses group d // (K*D/G); (Bt, N, L) for
            G = 1; (K*D, N) when constant in time. `bld`: (Bt, L, G, N), (Bt, L, N).
        C: As B; one of the two may be constant, or have fewer groups than the other.
        D: (K*D,) weight of the skip from u.
        z: (Bt, D, L), gate.
        delta_bias: (K*D,).
        delta_softplus: Apply softplus to delta + delta_bias.
        return_last_state: Also return the state after the last step; its gradient is exact.
        initial_state: (Bt, K*D, N).
        order: Name of a scan order or of a set of them, or a sequence of names.
        grid: Shape that the L tokens come from; needed by orders other than the raster ones.
        layout: "bdl", channels first, or "bld", channels last.
        out_dtype: dtype of the output; that of u unless given.
        backend: "numba", "triton" or "torch"; the first that can run it unless given.

    Returns:
        (Bt, D, L), (Bt, L, D) for `bld`; with `return_last_state` also (Bt, K*D, N) in float32.

    Raises:
        ValueError: Shapes, dtypes, order and grid do not go together.
        BackendError: The backend asked for can't run this call.
    """
    last, names = scan_orders.is_channels_last(layout), scan_orders.names_of(order)
    tokens = scan_orders.checked_grid(names, grid, _length_and_channels(u, last)[0])
    out_dtype = out_dtype or u.dtype
    wide = _widest(u, delta, B, C, z)
    state_dtype = torch.float64 if wide == torch.float64 else torch.float32
    B = _grouped(B, "B", u, A, last)
    C = _grouped(C, "C", u, A, last)
    B, C = _as_many_groups(B, C, 2 if last else 1), _as_many_groups(C, B, 2 if last else 1)
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, len(names), last)
    tokens_of = [_ready(each, wide) for each in (u, delta, B, C, z)]
    rates = [_ready(each, state_dtype) for each in (A, D, delta_bias, initial_state)]
    tensors = (*tokens_of[:2], rates[0], *tokens_of[2:4], rates[1], tokens_of[4], *rates[2:])
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, _, last_state = selective_scan_forward(
        *tensors, delta_softplus, ",".join(names), tokens, last, out_dtype, save,
        dispatch.asked(backend),
    )  # fmt: skip
    return (out, last_state) if return_last_state else out


def _length_and_channels(u: Tensor, channels_last: bool) -> tuple[int, int]:
    if u.dim() != 3:
        raise ValueError(f"u must have three axes, got shape {tuple(u.shape)}")
    return (u.shape[1], u.shape[2]) if channels_last else (u.shape[2], u.shape[1])


def _widest(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that holds all of them: autocast hands over a mixture."""
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    for dtype in dtypes:
        if not dtype.is_floating_point:
            raise ValueError(f"the scan takes real floating-point tensors, got {dtype}")
    wide = dtypes[0]
    for dtype in dtypes[1:]:
        wide = torch.promote_types(wide, dtype)
    return wide


def _ready(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in a dtype; itself where it is so, which costs nothing to ask."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()


def _grouped(given: Tensor, name: str, u: Tensor, A: Tensor, channels_last: bool) -> Tensor:
    """B or C as (Bt, G, N, L), or (Bt, L, G, N): constants become one group a channel."""
    if given.dim() == 4:
        return given
    if given.dim() == 3:
        return given.unsqueeze(2 if channels_last else 1)
    if given.dim() != 2 or given.shape != A.shape:
        raise ValueError(
            f"{name} must be (Bt, G, N, L), (Bt, N, L) or constant like A {tuple(A.shape)}, "
            f"got {tuple(given.shape)}"
        )
    if channels_last:
        return given[None, None].expand(u.shape[0], u.shape[1], -1, -1)
    return given[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])


def _as_many_groups(given: Tensor, other: Tensor, axis: int) -> Tensor:
    """B or C with each group repeated until there are as many as the other one has."""
    own, wanted = given.shape[axis], other.shape[axis]
    if own < 1 or own == wanted or wanted % own:
        return given
    return given.repeat_interleave(wanted // own, axis)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, orders: int, channels_last: bool,
) -> None:  # fmt: skip
    if A.dim() != 2 or A.is_complex():
        raise ValueError(f"A must be real, (channels, N), got {A.dtype} {tuple(A.shape)}")
    batch, (channels, states) = u.shape[0], A.shape
    length, given = _length_and_channels(u, channels_last)
    if channels % orders or given not in (channels, channels // orders):
        raise ValueError(
            f"u has {given} channels and A {channels}: with {orders} orders A needs {orders} rows "
            "a channel of u, or as many rows as u has channels"
        )
    groups = B.shape[2 if channels_last else 1]
    if groups < 1 or groups % orders or channels % groups:
        raise ValueError(
            f"B has {groups} groups: that must be a multiple of the {orders} orders and divide "
            f"the {channels} channels"
        )

    def tokens(width: int) -> tuple[int, ...]:
        return (batch, length, width) if channels_last else (batch, width, length)

    over_time = (
        (batch, length, groups, states) if channels_last else (batch, groups, states, length)
    )
    expected: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("delta", delta, tokens(channels)),
        ("B", B, over_time),
        ("C", C, over_time),
        ("D", D, (channels,)),
        ("z", z, tokens(channels // orders)),
        ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, states)),
    )
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor is not None and tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}")


def selective_scan_vmamba_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """The scan with VMamba's signature: no gate, softplus on, float32 out where `oflex` is set.

    Args as in `selective_scan_fn`; u (Bt, D, L) holds the sequences in the order they are scanned.
    """
    out_dtype = torch.float32 if oflex and u.dtype != torch.float64 else None
    out = selective_scan_fn(
        u, delta, A, B, C, D, None, delta_bias, delta_softplus,
        out_dtype=out_dtype, backend=backend,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def example(device: str) -> tuple[Tensor, Tensor, int]:
    """What `can_run` takes, of a small call."""
    return torch.zeros(1, 16, 64, device=device), torch.zeros(16, 16, device=device), 1
