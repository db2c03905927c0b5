"""Copies between the CPU and a GPU, through pinned memory and without waiting where nothing needs the copy yet.

to_device(tokens, device)                      # the CPU goes on while the copy is under way
to_host({"resid_post.9": activations})         # all copies at once, then one wait
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; work that is given to the device's current stream afterwards sees it whole."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, whole when this returns; those of a GPU in pinned memory."""
    copies = {name: tensor.cpu() if not tensor.is_cuda else _pinned(tensor) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _pinned(tensor: Tensor) -> Tensor:
    """A copy that is under way."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
