"""The trainer: one autoencoder, one optimizer, one step at a time; batches may come from anywhere.

trainer = Trainer(recipe_of(SAEConfig(variant="topk"), [576]), OptimConfig(), steps=steps, device=device, seed=0, ...)
trainer.initialise(first_inputs, first_targets)
for batch in batches.iterate(None):
    trainer.step(batch.input, batch.target)
autoencoder = trainer.finished()
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base import draws
from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.models.recipe import Recipe
from sae.modules.corruption import corrupt
from sae.modules.losses import Term
from sae.modules.normalise import Affine, fit, identity, layer_norm
from sae.training.checkpoint import load_newest, prune, save_checkpoint
from sae.training.first_weights import fit_biases, geometric_median
from sae.training.graphs import graph_for
from sae.training.optimizers import Library, make_optimizer
from sae.training.precision import float32_products, precision
from sae.training.revival import resample
from sae.training.routes import FusedRoute, StepContext, StepOutcome, check_weights, choose_route
from sae.training.schedules import annealed, course, default_peak
from sae.training.sparsity import Sparsity
from sae.training.weights import in_float32, store_as
from sae.training.window import Window, WindowSums

DEAD_REFRESH = 20  # steps between updates of the list of dead latents: each makes the host wait for the device
PROBE_ROWS = 256  # inputs kept for the saved autoencoder's self-test
SETTLE_ROWS = 16_384  # newest inputs, to which a threshold is fitted at the end
FIRST_ACTIVE = 4  # L0 of a penalised variant at the start, as a multiple of its target
SEED_ROWS = 2048  # inputs that the first biases are fitted to
BEGINNING, DRAWS, CORRUPTED, REVIVED = range(4)  # uses of random numbers, each with a generator of its own


class Trainer:
    """Trains an autoencoder in normalised units, in which mean ||x||² = d.

    Weights and the optimizer's tensors are float32 unless the settings store them in fewer bits. On a GPU the host
    waits for the device only every 20 steps, to list the dead latents; a step that is not finite, and all steps after
    it, change nothing there.

    Args:
        recipe: the autoencoder, its loss, and its variant's defaults for training.
        optim: optimizer, learning rate, precision.
        steps: of the whole run.
        dead_after: tokens without firing after which a latent is dead.
        auxk: dead latents that the auxiliary loss uses.
        seed: of every random draw.
    """

    def __init__(
        self,
        recipe: Recipe,
        optim: OptimConfig,
        *,
        steps: int,
        dead_after: int,
        auxk: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.recipe, self.sae = recipe, recipe.config
        self.config, self.steps, self.device, self.seed = optim, steps, device, seed
        self.dead_after, self.auxk = dead_after, auxk
        # a recipe may be trained several times, to measure its speed for example: its own model stays untrained
        self.model = copy.deepcopy(recipe.model).to(device)
        self.terms: list[Term] = list(recipe.terms)
        default = recipe.lr or default_peak(self.width, steps, optim.optimizer)
        self.peak = optim.lr or default
        self.sparsity = None if recipe.penalty is None else self._sparsity(recipe.penalty, self.peak / default)
        self.compute, self.products = precision(optim, device)
        check_weights(recipe, optim, self.compute, device)
        self.inputs = self.targets = identity(self.model.dim)
        self.taken = 0
        self.seconds = 0.0  # of training so far, in all processes; measured by the loop that takes the steps
        self.dead = torch.zeros(0, dtype=torch.int64, device=device)
        self.probe = torch.zeros(0, self.model.dim)
        self.optimizer = make_optimizer(self.model, optim, 0.9 if optim.beta1 is None else optim.beta1)
        self.route = choose_route(
            self.model,
            self.optimizer,
            self.terms,
            optim,
            auxk=auxk,
            compute=self.compute,
            site_widths=recipe.target_widths,
        )
        # the latents' running mean values, for terms that compare them with a rate
        self.running = None if recipe.rate_momentum is None else torch.zeros(self.model.width, device=device)
        self._recent: list[Tensor] = []
        self._window = WindowSums([term.name for term in self.terms], device)
        self.graph = graph_for(recipe, optim, self.compute, device)

    shares = 1
    """Equal parts that every batch is cut into, of which this trainer gets one."""

    @property
    def width(self) -> int:
        """Number of latents, F."""
        return self.model.width

    def _sparsity(self, penalty: str, pace: float) -> Sparsity:
        sae = self.sae
        target = None if sae.sparsity is not None else (sae.l0_target or float(sae.k))
        warmup = {"steps": self.steps, "warmup": sae.sparsity_warmup}
        return Sparsity(penalty, target=target, fixed=sae.sparsity, device=self.device, pace=pace, **warmup)

    @torch.no_grad()
    def initialise(self, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, active: float = FIRST_ACTIVE) -> None:
        """Weights from the seed; normalisation and pre-bias from the first batches (the targets' geometric median).

        A penalised variant starts with `active` times the active latents of its target.
        """
        store_as(self.model, torch.float32)
        self._draw_weights()
        x = torch.cat([batch.to(self.device).float() for batch in inputs])
        self.inputs = fit(self.sae.normalise, x, self.recipe.site_widths)
        self.probe = x[:PROBE_ROWS].cpu()
        y = torch.cat([batch.to(self.device).float() for batch in targets])
        self.targets = fit(self.sae.normalise, y, self.recipe.target_widths) if self.model.transcodes else self.inputs
        if self.model.head is None:
            self.model.dictionary.b.copy_(geometric_median(self._normalised(y, self.targets)))
        embedded = self.model.embed(self._normalised(x[:SEED_ROWS], self.inputs))
        self.model.code.begin(embedded, self.model.dictionary, draws.generator(self.seed, BEGINNING))
        if self.sparsity is not None or any(term.name == "l0_target" for term in self.terms):
            rate = min(0.5, active * (self.sae.l0_target or float(self.sae.k)) / self.width)
            fit_biases(self.model, embedded, rate)
        store_as(self.model, getattr(torch, self.config.weights))

    def _draw_weights(self) -> None:
        self.model.initialise(torch.Generator().manual_seed(self.seed))

    def _normalised(self, x: Tensor, affine: Affine) -> Tensor:
        x = affine.apply(x)
        return layer_norm(x)[0] if self.model.per_token_norm else x

    def step(self, inputs: Tensor, targets: Tensor, adjacent: Tensor | None = None) -> None:
        """One step on inputs [N, d] and targets [N, d_out] in any float precision and on any device.

        `adjacent` bool [N / 2]: whether rows 2i and 2i + 1 are neighbouring tokens, for variants that need pairs.

        Raises:
            DivergedError: the loss or a gradient was not finite (on a GPU noticed at the next `window`).
        """
        if self.taken % DEAD_REFRESH == 0:
            self._refresh_dead()
        lr = self.peak * course(self.taken, self.steps, warmup=self.config.warmup, decay=self._decay())
        if self.sae.k_start is not None:
            self.model.code.set_k(annealed(self.taken, self.steps, self.sae.k_start, self.sae.k, self.sae.k_anneal))
        now = StepContext(
            step=self.taken + 1,
            lr=lr,
            terms=self._weighted(),
            dead=self.dead,
            allowed=self._window.checks,
            power=1.0 if self.sparsity is None else self.sparsity.power,
            adjacent=None if adjacent is None else adjacent.to(self.device, non_blocking=True),
            generator=self._draws(DRAWS) if self.model.code.stochastic else None,
            progress=self.taken / self.steps,
            running=self.running,
        )
        self.route.begin(now)
        rows = [
            batch.to(self.device, non_blocking=True) for batch in ([inputs] if targets is inputs else [inputs, targets])
        ]
        compute = partial(self._compute, now)
        if self.graph is None or adjacent is not None:
            x, target, taken = compute(self.dead, *rows)
        else:
            x, target, taken = self.graph.run(self._graph_key(now, rows), compute, [self.dead, *rows])
        self._window.steps += 1
        if self.sparsity is not None:
            self.sparsity.observe(taken.codes)
        self._revive(x, target, taken)
        self.taken += 1
        if self.model.code.settles:
            self._recent = [*self._recent, inputs][-max(1, SETTLE_ROWS // (self.shares * len(inputs))) :]

    def _compute(self, now: StepContext, dead: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor, StepOutcome]:
        """A step on the device: rows as they were harvested, inputs and any other targets, to the sums of the window.

        A graph may hold it: whatever changes with the step is in memory that stays in its place.
        """
        corruption, corrupted = self.recipe.corruption, None
        x, y = rows[0].float(), rows[-1].float()
        if corruption is not None:
            x, corrupted = corrupt(*corruption, x, self._draws(CORRUPTED))
        x = target = self._normalised(x, self.inputs)
        if len(rows) > 1 or corruption is not None:
            target = self._normalised(y, self.targets)
        now = now._replace(dead=dead, corrupted=corrupted, allowed=self._window.finite())
        with float32_products(self.products):
            taken = self.route.take(x, target, now)
        self.model.code.constrain()
        if self.model.code.learns:
            self.model.code.learn(taken.embedded, taken.codes, self.model.dictionary, self._draws(BEGINNING, "cpu"))
        if self.running is not None and self.recipe.rate_momentum is not None:
            self.running.lerp_(taken.codes.to_dense().mean(0), 1 - self.recipe.rate_momentum if self.taken else 1.0)
        self._note(taken, target)
        return x, target, taken

    def _graph_key(self, now: StepContext, rows: Sequence[Tensor]) -> Hashable:
        """Everything that a captured step depends on, but for the memory of the trainer's sums."""
        assert isinstance(self.route, FusedRoute)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in (now.dead, *rows))
        return shapes, tuple((term.name, term.weight) for term in now.terms), self.model.code.k, self.route.memory()

    def _refresh_dead(self) -> None:
        self.dead = self.model.dictionary.dead(self.dead_after).nonzero().squeeze(1)

    def _draws(self, use: int, device: torch.device | str | None = None) -> torch.Generator:
        """This step's random generator for one use."""
        return draws.generator(self.seed, self.taken + 1, use, device=device or self.device)

    def _decay(self) -> float:
        return 0.0 if self.config.optimizer == "signsgd" else self.config.decay  # averaging replaces the decay

    def _weighted(self) -> list[Term]:
        """The terms with this step's weights: the penalty's, and those in warm-up."""
        terms = [term.at(self.taken / self.steps) for term in self.terms]
        sparsity = self.sparsity
        if sparsity is None:
            return terms
        weight: Any = sparsity.weight()
        return [term._replace(weight=weight) if term.name == sparsity.penalty else term for term in terms]

    def _revive(self, x: Tensor, target: Tensor, taken: StepOutcome) -> None:
        """Resample the dead latents, every `dead_after` tokens of the first three quarters of the run."""
        if self.recipe.revival != "resample":
            return
        every = max(1, self.dead_after // len(x))
        if (self.taken + 1) % every or self.taken > 0.75 * self.steps:
            return
        dead = self.model.dictionary.dead(self.dead_after).nonzero().squeeze(1)
        with in_float32(self.model):
            resample(self.model, dead, x, target, taken.error, self._draws(REVIVED, "cpu"))
        self.optimizer.forget(dead)

    @torch.no_grad()
    def finished(self) -> Autoencoder:
        """The autoencoder to save: encodes each token by itself, with normalisation folded in.

        A threshold that replaces a selection over the batch is fitted to the newest inputs.
        """
        model = self.model.like(copy.deepcopy(self.model.code))
        if self.config.weights != "float32" and model.dictionary.unit:
            # atoms have the norm 1 up to the rounding of their numbers
            model.dictionary.W.copy_(torch.nn.functional.normalize(model.dictionary.W, dim=1))
        for name, averaged in self.optimizer.averaged().items():
            model.get_parameter(name).copy_(averaged)
        if self._recent:
            x = self._normalised(torch.cat([rows.to(self.device).float() for rows in self._recent]), self.inputs)
            model = model.like(model.code.settled(x, model.W_enc, model.b_enc, model.b_pre))
        return model.folded(self.inputs, self.targets)

    def _note(self, taken: StepOutcome, target: Tensor) -> None:
        """Add the step to the window."""
        variance = (target - target.mean(0)).square().sum()
        self._add(taken, variance, taken.error.sum(), (taken.codes.values != 0).sum() / taken.codes.tokens)

    @torch.no_grad()
    def _add(self, taken: StepOutcome, variance: Tensor, error: Tensor, l0: Tensor) -> None:
        """Add a batch's sums and its L0, and keep the checks of the first step that is not finite.

        Raises:
            DivergedError: this step is the one, on a CPU; on a GPU nothing waits.
        """
        finite = self._window.check(variance, taken.parts, taken.grad_norm)
        dictionary = self.model.dictionary
        before = dictionary.tokens_since_fired.clone()
        dictionary.note_fired(taken.codes)
        dictionary.tokens_since_fired.copy_(torch.where(finite, dictionary.tokens_since_fired, before))
        if self.device.type == "cpu":
            self.raise_if_diverged()
        values = {
            "loss": taken.loss,
            "error": error,
            "variance": variance,
            "l0": l0,
            "grad_norm": taken.grad_norm,
            **{f"part.{name}": value for name, value in taken.parts.items()},
        }
        if self.sparsity is not None:
            values["sparsity"] = self.sparsity.weight()
        self._window.add(values, finite)

    def raise_if_diverged(self) -> None:
        """Raise DivergedError if a step was not finite; names the input, the loss term or the gradient."""
        self._window.raise_if_diverged(self.taken)

    def window(self) -> Window:
        """Means over the steps since the last call; the one place where the host waits for the device."""
        self.raise_if_diverged()
        return self._window.means(dead=self._dead_share())

    def _dead_share(self) -> float:
        return self.model.dictionary.dead(self.dead_after).float().mean().item()

    def save(self, folder: Path, data: dict[str, Any], *, keep: int) -> None:
        """Write a checkpoint of this step; `data` is the state of its batch, and the `keep` newest are kept."""
        save_checkpoint(folder, self.taken, *self.state(), data, keep=keep)

    def resume(self, folder: Path, *, keep: int) -> dict[str, Any] | None:
        """Restore the newest of `keep` checkpoints; the state of its batch, or None where there is none.

        Raises:
            CorruptError: it is damaged.
        """
        checkpoint = load_newest(folder)
        if checkpoint is None:
            return None
        self.restore(checkpoint.tensors, checkpoint.trainer)
        prune(folder, keep)
        return checkpoint.data

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later process needs to continue bit-identically: tensors, and JSON values."""
        tensors, values = self._state()
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, values

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`state`, with the tensors that training changes."""
        model = self.model.state_dict()
        if self.model.code.tied:
            del model["W_enc"]  # the same memory as the dictionary's
        tensors = {f"model.{name}": t for name, t in model.items()}
        tensors |= {f"optimizer.{name}": t for name, t in self.optimizer.tensors.items()}
        for end, affine in (("inputs", self.inputs), ("targets", self.targets)):
            tensors |= {f"{end}.{name}": t for name, t in affine._asdict().items()}
        tensors["dead"], tensors["probe"] = self.dead, self.probe
        tensors |= {f"recent.{i}": rows for i, rows in enumerate(self._recent)}
        if self.running is not None:
            tensors["running"] = self.running
        if self._window.steps:
            tensors |= {f"window.{name}": sums for name, sums in self._window.sums.items()}
        values: dict[str, Any] = {"taken": self.taken, "seconds": self.seconds, "window_steps": self._window.steps}
        if self.sparsity is not None:
            more, values["sparsity"] = self.sparsity.state()
            tensors |= {f"sparsity.{name}": t for name, t in more.items()}
        return tensors, values

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n[len(prefix) + 1 :]: t for n, t in tensors.items() if n.startswith(prefix + ".")}

        store_as(self.model, getattr(torch, self.config.weights))
        self.model.load_state_dict(part("model"), strict=not self.model.code.tied)
        moments = part("optimizer")
        if isinstance(self.optimizer, Library):
            self.optimizer.restore(moments)
        for name, tensor in self.optimizer.tensors.items():
            tensor.copy_(moments[name])
        self.inputs, self.targets = (
            Affine(**{name: t.to(self.device) for name, t in part(end).items()}) for end in ("inputs", "targets")
        )
        self.dead, self.probe = tensors["dead"].to(self.device), tensors["probe"]
        if self.running is not None:
            self.running.copy_(tensors["running"])
        recent = part("recent")
        self._recent = [recent[str(i)] for i in range(len(recent))]
        self.taken, self.seconds = values["taken"], values["seconds"]
        # a checkpoint of an earlier version has no sums: its next line is of the steps after it
        self._window.steps = values.get("window_steps", 0)
        self._window.sums = {name: sums.to(self.device) for name, sums in part("window").items()}
        if self.graph is not None:
            self.graph.forget()
        if self.sparsity is not None:
            self.sparsity.restore(part("sparsity"), values["sparsity"])
