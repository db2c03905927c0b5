"""What the three encode ops share: the checks of their inputs, the choice of the route, and the gradients.

All three compute f = relu(select(W_enc (x - b_pre) + b_enc)), or without the relu, and differ in what they select.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_kernels.dispatch import Implementations, backend_for, choose, no_autocast
from sae_kernels.latent_sweep.op import encode_weight_backward


def check_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, k: int | None = None) -> None:
    """Raise ValueError unless x [N, d], W_enc [F, d], b_enc [F] and b_pre [d] fit each other, and 1 <= k <= F."""
    if x.ndim != 2 or W_enc.ndim != 2 or x.shape[1] != W_enc.shape[1]:
        raise ValueError(f"expected x [N, d] and W_enc [F, d]; got {tuple(x.shape)} and {tuple(W_enc.shape)}")
    if b_enc.shape != W_enc.shape[:1]:
        raise ValueError(f"expected b_enc [{W_enc.shape[0]}], one a row of W_enc; got {tuple(b_enc.shape)}")
    if b_pre is not None and b_pre.shape != x.shape[1:]:
        raise ValueError(f"expected b_pre [{x.shape[1]}], one a column of x; got {tuple(b_pre.shape)}")
    if k is not None and not 1 <= k <= W_enc.shape[0]:
        raise ValueError(f"k = {k} is outside 1..{W_enc.shape[0]}, the number of latents")


def run_encode(
    name: str, implementations: Implementations, operator: Callable[..., Any], x: Tensor, *arguments: Any
) -> Any:
    """Call the reference directly, so that autograd differentiates it; every other backend through `operator`."""
    if backend_for(name, x, implementations) == "naive":
        with no_autocast(x.device.type):
            return choose(name, x, implementations)(x, *arguments)
    return operator(x, *arguments)


def register_gradients(operator: Any, *, b_pre_at: int, relu: bool = True) -> None:
    """Make an encode operator differentiable in x, W_enc, b_enc (its first three inputs) and b_pre.

    Args:
        operator: a custom op that returns values and indices [N, K], or values and indices [nnz] and offsets [N+1].
        b_pre_at: which of its inputs is b_pre.
        relu: whether an entry of value <= 0 passes no gradient on; otherwise every entry does.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, W_enc, b_enc = inputs[:3]
        ctx.save_for_backward(x, W_enc, inputs[b_pre_at], output[0] if relu else None, *output[1:])
        ctx.bias_dtype = b_enc.dtype

    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, W_enc, b_pre, values, indices, *rest = ctx.saved_tensors
        offsets = rest[0] if rest else None
        wants_x, wants_W, wants_b = ctx.needs_input_grad[:3]
        wants_b_pre = ctx.needs_input_grad[b_pre_at]
        gates = torch.ones_like(grad_values) if values is None else values
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if wants_x:
            zero = W_enc.new_zeros(W_enc.shape[1])
            through = torch.where(gates <= 0, 0, grad_values)
            grads[0] = torch.ops.sae_kernels.sparse_decode(through, indices, offsets, W_enc, zero).to(x.dtype)
        if wants_W or wants_b or wants_b_pre:
            compute = torch.promote_types(x.dtype, torch.float32)
            centred = x.to(compute) if b_pre is None else x.to(compute) - b_pre.to(compute)
            grad_W, grad_b = encode_weight_backward(grad_values, gates, indices, offsets, centred, W_enc.shape[0])
            grads[1] = grad_W.to(W_enc.dtype) if wants_W else None
            grads[2] = grad_b.to(ctx.bias_dtype) if wants_b else None
            if wants_b_pre and b_pre is not None:
                # the sum over tokens first: [F], then one matrix-vector product instead of an N x d one
                grads[b_pre_at] = -(grad_b @ W_enc.to(grad_b.dtype)).to(b_pre.dtype)
        return tuple(grads)

    operator.register_autograd(backward, setup_context=setup)
