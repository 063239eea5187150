"""The causal depthwise convolution in front of a scan, with causal_conv1d's signature.

    y_t = activation(bias + sum_k weight[:, k] x_{t - W + 1 + k})

with x_t = 0, or initial_states, for t < 0.

It equals conv1d with W - 1 zeros on the left; sums are float32 (float64 for float64 inputs).

What a backend (`causal_conv1d.<backend>`) exports, x and grad_out contiguous:

    can_run(x, weight, orders, *, raise_error=False) -> Verdict
    forward(x, weight, bias, initial_states, *, silu, orders, grid, channels_last) -> out
    backward(grad_out, x, weight, bias, initial_states, *, silu, orders, grid, channels_last)
        -> (dx, dweight, dbias, dinitial_states)

With K = len(orders): x (Bt, D, L), read by each order; weight (K*D, W); bias (K*D,);
initial_states (Bt, K*D, W - 1) in either layout; out (Bt, K*D, L). With `channels_last`
x (Bt, L, D), out (Bt, L, K*D). Everything lies at raster positions; step t of an order sees the
tokens that this order visits at steps t - W + 1 .. t. weight, bias and initial_states are float32
(float64 when x is); out and dx have the dtype of x. Gradients of absent arguments are None.
"""

from __future__ import annotations

from .interface import causal_conv1d_fn, example

__all__ = ["causal_conv1d_fn", "example"]
