"""One TopK training step: ours beside that of sparsify, SAELens and dictionary_learning, rounds interleaved.

    make bench-peers

Their packages need other versions than ours, so this runs in an environment of its own (`.venv-peers`), with our
`kernels` folder on the path. Each peer's step is what its own trainer does with a batch: its forward, loss, backward,
gradient and decoder rules, and Adam; data loading and logging are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from sae_kernels.bench.step import Problem
from sae_kernels.bench.timing import interleaved, machine


def sparsify_step(x: torch.Tensor, width: int, k: int) -> Callable[[], Any]:
    """EleutherAI sparsify, as in its trainer: FVU loss, projection of the decoder's gradient, Adam, unit norm."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=width, k=k))
    adam = torch.optim.Adam(coder.parameters(), lr=2e-4)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def saelens_step(x: torch.Tensor, width: int, k: int) -> Callable[[], Any]:
    """SAELens' TopKTrainingSAE with its defaults, as in its trainer: firing counts, clipping at norm 1, Adam."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=width, k=k))
    adam = torch.optim.Adam(model.parameters(), lr=2e-4)
    since_fired = torch.zeros(width)
    frequency = torch.zeros(width)

    def step() -> None:
        model.train()
        given = TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=(since_fired > 1000).bool(),
            n_training_steps=1,
            is_logging_step=False,
        )
        output = model.training_forward_pass(step_input=given)
        with torch.no_grad():
            firing = output.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            since_fired.add_(1)
            since_fired[fired] = 0
            frequency.add_(firing.sum(0))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def dictionary_learning_step(x: torch.Tensor, width: int, k: int) -> Callable[[], Any]:
    """dictionary_learning's own `TopKTrainer.update`: decoder rules, clipping at norm 1, Adam, schedule."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6,
        activation_dim=x.shape[1],
        dict_size=width,
        k=k,
        layer=0,
        lm_name="-",
        lr=2e-4,
        device="cpu",
        seed=0,
    )
    # step 0 would set the bias; those after the 1000th keep a running threshold
    return lambda: trainer.update(2000, x)


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--width", type=int, default=9216)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    shape = parser.parse_args()
    problem = Problem(shape.tokens, shape.d, shape.width, shape.k)
    steps = {
        "encode product": problem.product(),
        "ours": problem.fused,
        "sparsify": sparsify_step(problem.x, shape.width, shape.k),
        "SAELens": saelens_step(problem.x, shape.width, shape.k),
        "dictionary_learning": dictionary_learning_step(problem.x, shape.width, shape.k),
    }
    timings = interleaved(steps, shape.rounds)
    ours = timings["ours"]
    rows = [
        {
            "what": name,
            "median ms": round(t.median, 1),
            "fastest ms": round(t.fastest, 1),
            "x ours": round(t.median / ours.median, 2),
            "x ours, fastest": round(t.fastest / ours.fastest, 2),
        }
        for name, t in timings.items()
    ]
    for row in rows:
        print("  ".join(f"{value!s:>20}" for value in row.values()))
    print(json.dumps({"bench": "peers", "shape": vars(shape), "rows": rows, "machine": machine("cpu")}))


if __name__ == "__main__":
    main()
