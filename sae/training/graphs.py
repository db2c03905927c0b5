"""CUDA graphs: the launches of a training step, captured once and replayed, so that the host starts one thing a step.

    graph = StepGraph(required=False)
    result = graph.run(key, function, tensors)      # function(*tensors), eagerly, captured or replayed

A graph repeats the launches of the step at which it was captured, with the arguments and the memory that they had then.
So `function` may read what changes from step to step only from `tensors`, which are copied into memory of the graph's
own, and from memory that stays in its place; `key` must change with everything else that it reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError, OptimConfig
from sae.models.recipe import Recipe
from sae.training.routes import takes_fused

Replay = Callable[[], Any]


def graph_for(recipe: Recipe, config: OptimConfig, compute: torch.dtype, device: torch.device) -> StepGraph | None:
    """For steps whose shapes stand still, on a GPU; None for others, and where it is turned off.

    Raises:
        ConfigError: --graphs on, and steps of this recipe cannot be captured.
    """
    code = recipe.model.code
    why = [
        *([] if device.type == "cuda" else ["there is no GPU"]),
        *([] if code.steady else [f"the size of the codes ({code.name}) varies from batch to batch"]),
        *([] if takes_fused(recipe, config, compute, device) else ["the fused step does not take them"]),
        *(["inputs are corrupted at random"] if recipe.corruption is not None else []),
    ]
    if config.graphs == "on" and why:
        raise ConfigError(f"--graphs on: steps of this run cannot be captured: {why[0]}")
    return None if config.graphs == "off" or why else StepGraph(required=config.graphs == "on")


class StepGraph:
    """One captured step, and the key that it was captured for.

    A step with a new key runs eagerly, which also compiles its kernels; the second with that key is captured; all
    others replay it. Until the next call the results are in the graph's memory.

    Args:
        required: raise where a capture fails; otherwise warn once, and run eagerly from then on.
        capture: calls its argument and returns a function that repeats what it launched and returns its results.
    """

    def __init__(self, *, required: bool, capture: Callable[[Replay], Replay] | None = None) -> None:
        self.required, self.capture = required, capture or _captured
        self.captures = self.replays = 0
        self.failed = False
        self.forget()

    def forget(self) -> None:
        """Drop the captured step, because memory that it used was replaced."""
        self.key: Hashable = None
        self.memory: list[Tensor] = []
        self.replay: Replay | None = None

    def run(self, key: Hashable, function: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
        """`function(*tensors)`."""
        if key != self.key or self.failed:
            self.forget()
            self.key = key
            return function(*tensors)
        if self.replay is None:
            memory = [tensor.clone() for tensor in tensors]
            try:
                self.replay, self.memory = self.capture(lambda: function(*memory)), memory
            except RuntimeError as error:
                if self.required:
                    raise
                self.failed = True
                warnings.warn(f"no CUDA graph of a training step: {error}; steps run eagerly", stacklevel=2)
                return function(*tensors)
            self.captures += 1
        for place, tensor in zip(self.memory, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        self.replays += 1
        return self.replay()


def _captured(function: Replay) -> Replay:
    graph = torch.cuda.CUDAGraph()
    # a harvest may allocate in another thread meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
