"""The time of a training step on a mesh of D data x L latent ranks, from the rates of a rank and its links.

With N rows a batch, n = N / D of them in a rank, width d, F latents, f = F / L of them in a rank, k active a row:

    compute(n, f)   overhead + (2 n f d + 8 n k d) / rate + 80 f d / memory
    data axis       all-reduce of the gradients, 8 f d bytes, and of b_enc and what fired
    latent axis     all-gather of candidates, 4 n k bytes a rank; all-reduce of reconstructions, 4 n d bytes
    all ranks       all-reduces of d numbers and of scalars
    harvest         FLOPs of a token up to the site x N / (D L) / rate of the language model; rows sent on, 2 n d bytes

2 n f d are the FLOPs of the encoder; 8 n k d those of the decoder, its gradient and the two sparse gradients; 80 f d
the bytes of two float32 matrices that are read or written ten times, for gradients, moments and weights. An all-reduce
of b bytes over p ranks takes the shorter of a ring, 2 (p - 1) (latency + b / p / bandwidth), and a double tree,
2 log2(p) latency + 2 b / bandwidth (Sanders, Speck & Traeff 2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SCALARS = 5
"""All-reduces of a step that carry next to nothing: loss terms, gradient norm, window."""
PARTS = ("harvest", "sae", "data", "latent", "waiting")
"""What the time of a step goes to."""


class Link(NamedTuple):
    """A way from one rank to the next."""

    latency: float
    """Seconds of a message without content."""
    bandwidth: float
    """Bytes a second, one way."""

    def all_reduce(self, ranks: int, size: float) -> float:
        """Seconds for the sum of `size` bytes over `ranks` ranks."""
        if ranks == 1:
            return 0.0
        ring = 2 * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)
        tree = 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * size / self.bandwidth
        return min(ring, tree)

    def all_gather(self, ranks: int, size: float) -> float:
        """Seconds until every rank has the `size` bytes of each."""
        return (ranks - 1) * (self.latency + size / self.bandwidth)


class Rank(NamedTuple):
    """How fast one rank computes."""

    overhead: float
    """Seconds of a step without rows or latents."""
    rate: float
    """FLOP/s of the autoencoder's products."""
    memory: float
    """Bytes a second of its weights, gradients and moments."""
    spread: float
    """Standard deviation of the logarithm of its times, from step to step."""

    def compute(self, rows: float, latents: float, d: int, k: int) -> float:
        """Seconds of a step of one rank by itself."""
        return self.overhead + flops(rows, latents, d, k) / self.rate + state_bytes(latents, d) / self.memory


class Job(NamedTuple):
    """One training run."""

    d: int
    latents: int
    k: int
    rows: int
    """Of a batch, over all ranks."""
    data: int
    latent: int
    harvest: float = 0.0
    """FLOPs of the language model for a token, up to the site."""


class Machine(NamedTuple):
    """The ranks and what lies between them."""

    rank: Rank
    data: Link
    """Between neighbours of the data axis."""
    latent: Link
    everyone: Link
    model_rate: float = math.inf
    """FLOP/s of the language model's forward pass in a rank."""


def flops(rows: float, latents: float, d: int, k: int) -> float:
    """Of a step of the autoencoder."""
    return 2 * rows * latents * d + 8 * rows * k * d


def state_bytes(latents: float, d: int) -> float:
    """Read and written in a step for weights, gradients and moments."""
    return 80 * latents * d


def fit_rank(times: Sequence[tuple[float, float, float]], d: int, k: int, spread: float) -> Rank:
    """The rates that foretell steps of one rank by itself with the least relative error.

    Args:
        times: rows, latents, seconds of each.
    """
    from scipy.optimize import nnls

    seconds = np.array([t for _, _, t in times])
    costs = np.array([[1.0, flops(n, f, d, k), state_bytes(f, d)] for n, f, _ in times])
    scale = costs.max(0)
    shares, _ = nnls(costs / scale / seconds[:, None], np.ones(len(times)))
    overhead, per_flop, per_byte = shares / scale
    return Rank(float(overhead), _inverse(per_flop), _inverse(per_byte), spread)


def fit_link(times: Sequence[tuple[float, float]], ranks: int) -> Link:
    """Latency and bandwidth that foretell all-reduces (bytes, seconds) with the least relative error."""
    from scipy.optimize import nnls

    seconds = np.array([t for _, t in times])
    costs = np.array([[2 * (ranks - 1), 2 * (ranks - 1) * size / ranks] for size, _ in times])
    scale = costs.max(0)
    shares, _ = nnls(costs / scale / seconds[:, None], np.ones(len(times)))
    latency, per_byte = shares / scale
    return Link(float(latency), _inverse(per_byte))


def _inverse(cost: float) -> float:
    return 1 / float(cost) if cost > 0 else math.inf


class Costs(NamedTuple):
    """Seconds of a step without jitter, by what they go to."""

    harvest: float
    forward: float
    """Of the autoencoder, until the latent ranks exchange candidates."""
    candidates: float
    backward: float
    """The rest of the autoencoder's, but for the gradients' exchange."""
    reconstructions: float
    gradients: float
    scalars: float


def costs(job: Job, machine: Machine) -> Costs:
    """What a step costs each rank."""
    n, f = job.rows / job.data, job.latents / job.latent
    compute = machine.rank.compute(n, f, job.d, job.k)
    forward = 2 * n * f * job.d / machine.rank.rate
    rows_sent = 2 * n * job.d / machine.everyone.bandwidth if job.harvest else 0.0
    world = job.data * job.latent
    return Costs(
        harvest=job.harvest * job.rows / world / machine.model_rate + rows_sent,
        forward=forward,
        candidates=machine.latent.all_gather(job.latent, 4 * n * job.k),
        backward=compute - forward,
        reconstructions=machine.latent.all_reduce(job.latent, 4 * n * job.d),
        gradients=machine.data.all_reduce(job.data, 8 * f * job.d + 5 * f),
        scalars=SCALARS * machine.everyone.all_reduce(world, 12 * job.d / SCALARS),
    )


def simulate(job: Job, machine: Machine, *, steps: int, seed: int) -> dict[str, float]:
    """Mean seconds of a step, whole ("step") and by `PARTS`, with the jitter of every rank drawn.

    Each rank has a clock. An exchange begins when the last of its ranks has come, and ends for all of them at once.
    "waiting" is the mean time that a rank spends until the last one has come.
    """
    cost, draw = costs(job, machine), np.random.default_rng(seed)
    clock = np.zeros((job.data, job.latent))
    waiting = 0.0

    def work(seconds: float) -> None:
        nonlocal clock
        spread = machine.rank.spread
        clock = clock + seconds * np.exp(spread * draw.standard_normal(clock.shape) - spread**2 / 2)

    def meet(axis: int | None, seconds: float, ranks: int) -> None:
        nonlocal clock, waiting
        if ranks > 1:
            last = clock.max(axis=axis, keepdims=True)
            waiting += float((last - clock).mean())
            clock = np.broadcast_to(last + seconds, clock.shape)

    for _ in range(steps):
        work(cost.harvest)
        if job.harvest:
            meet(None, 0.0, job.data * job.latent)  # rows go to the ranks that train on them
        work(cost.forward)
        meet(1, cost.candidates, job.latent)
        meet(1, cost.reconstructions, job.latent)
        work(cost.backward)
        meet(0, cost.gradients, job.data)
        meet(None, cost.scalars, job.data * job.latent)
    return {
        "step": float(clock.max()) / steps,
        "harvest": cost.harvest,
        "sae": cost.forward + cost.backward,
        "data": cost.gradients + cost.scalars,
        "latent": cost.candidates + cost.reconstructions,
        "waiting": waiting / steps,
    }
