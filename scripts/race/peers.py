"""Runs of another tool, in its own environment, by its own trainer, from the shared activations.

    PYTHONPATH=. .venv-peers/bin/python -m scripts.race.peers FOLDER '["SAELens topk", 0, 7.0]' ...

Every tool gets the same batches in the same order. What its documentation states in steps or tokens for runs of 10^5
steps and more (warm-up, decay, the window of dead latents, the averaging of a threshold) is given as the same share of
the run to all (`Course`); the rest are the tool's own defaults and recommendations, see docs/race.md. What is measured
is what the tool loads again from the file that it saved.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.race.member import Batches, Clock, Form, course_of, in_pieces, leave, parts
from scripts.race.settings import ENTRIES, Entry, Member, Race

NORM_BATCHES = 8  # batches by which SAELens finds the activations' scale, as ours does


def saelens(folder: Path, out: Path, race: Race, member: Member, entry: Entry) -> None:
    """SAELens: `SAETrainer.fit`, then `save_inference_model`; BatchTopK is saved as JumpReLU."""
    from sae_lens import (
        SAE,
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    batches = Batches(folder, member.seed, race.batch)
    course = course_of(race, batches)
    shape: dict[str, Any] = {"d_in": batches.dim, "d_sae": race.width, "k": race.k}
    shape |= {"normalize_activations": "expected_average_only_in", "device": "cpu"}
    torch.manual_seed(member.seed)
    if entry.variant == "topk":
        model: Any = TopKTrainingSAE(TopKTrainingSAEConfig(**shape))
    else:
        shape["topk_threshold_lr"] = 1 / course.threshold_window
        model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape))
    rate = entry.rate(race.width, member.multiple)
    settings = {
        "lr_end": rate / 10,  # asked for, and read by cosine schedules alone
        "lr_warm_up_steps": course.warmup,
        "lr_decay_steps": course.decay,
        "dead_feature_window": course.dead_after // race.batch,
        "n_batches_for_norm_estimate": min(NORM_BATCHES, batches.steps),
    }
    config = SAETrainerConfig(
        total_training_samples=batches.steps * race.batch,
        train_batch_size_samples=race.batch,
        lr=rate,
        **settings,
    )
    scale = itertools.islice(batches, settings["n_batches_for_norm_estimate"])
    SAETrainer(config, model, itertools.chain(scale, batches.timed())).fit()
    batches.clock.tick()
    model.save_inference_model(out / "saved")

    loaded: Any = SAE.load_from_disk(out / "saved", device="cpu")
    # topk may still be told to divide by the atoms' norms, which saving has made 1
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(race.width), rtol=1e-5, atol=1e-5)
    threshold = getattr(loaded, "threshold", None)
    form = Form(loaded.W_enc.T, loaded.b_enc, loaded.W_dec, loaded.b_dec, loaded.cfg.apply_b_dec_to_input, threshold)
    reconstructed = in_pieces(lambda x: loaded.decode(loaded.encode(x)), parts(folder, "test"))
    leave(out, race, member, entry, form, reconstructed, batches.clock, **settings, **shape)


def dictionary_learning(folder: Path, out: Path, race: Race, member: Member, entry: Entry) -> None:
    """dictionary_learning: `trainSAE`, which saves; BatchTopK is saved with its threshold, which `encode` applies."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    batches = Batches(folder, member.seed, race.batch)
    course = course_of(race, batches)
    trainer, coder = {"topk": (TopKTrainer, AutoEncoderTopK), "batchtopk": (BatchTopKTrainer, BatchTopKSAE)}[
        entry.variant
    ]

    def made(**settings: Any) -> Any:
        """Their trainer; the window of dead latents is no argument of it."""
        made = trainer(**settings)
        made.dead_feature_threshold = course.dead_after
        return made

    class Data:
        """`trainSAE` iterates twice: for the norm, and to train."""

        def __init__(self) -> None:
            self.times = 0

        def __iter__(self) -> Any:
            self.times += 1
            return iter(batches) if self.times == 1 else batches.timed()

    settings = {
        "steps": batches.steps,
        "activation_dim": batches.dim,
        "dict_size": race.width,
        "k": race.k,
        "layer": race.layer,
        "lm_name": race.model,
        "lr": entry.rate(race.width, member.multiple),
        "warmup_steps": course.warmup,
        "decay_start": batches.steps - course.decay,
        "threshold_beta": 1 - 1 / course.threshold_window,
        "threshold_start_step": course.warmup,
        "seed": member.seed,
        "device": "cpu",
    }
    trainSAE(
        data=Data(),
        trainer_configs=[{"trainer": made, **settings}],
        steps=batches.steps,
        save_dir=str(out / "saved"),
        normalize_activations=True,
        device="cpu",
    )
    loaded: Any = coder.from_pretrained(str(out / "saved" / "trainer_0" / "ae.pt"), device="cpu")
    threshold = None
    if entry.variant == "batchtopk":
        # values are rectified first: a threshold below zero, the mark of one never set, keeps all that are positive
        threshold = loaded.threshold.clamp_min(0).expand(race.width)
    form = Form(loaded.encoder.weight, loaded.encoder.bias, loaded.decoder.weight.T, loaded.b_dec, True, threshold)
    reconstructed = in_pieces(loaded, parts(folder, "test"))
    more = {"dead_feature_threshold": course.dead_after, "normalize_activations": True}
    leave(out, race, member, entry, form, reconstructed, batches.clock, **settings, **more)


class Stored(nn.Module):
    """A language model for sparsify's trainer whose layer's output is the stored activations.

    "Token ids" are numbers of steps: one sequence is the batch of one step.
    """

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches, self.layer = batches, nn.Identity()
        self.device = torch.device("cpu")
        self.base_model = self
        self.dummy_inputs = {"input_ids": torch.zeros(1, batches.batch, dtype=torch.int64)}

    def forward(self, input_ids: Tensor) -> Tensor:
        """Step numbers [1, batch] -> activations [1, batch, d]."""
        return self.layer(self.batches[int(input_ids[0, 0])].unsqueeze(0))


class StepNumbers:
    """A data set of one sequence a step, with a tick of the clock before each."""

    def __init__(self, batches: Batches, clock: Clock) -> None:
        self.batches, self.clock = batches, clock

    def __len__(self) -> int:
        return self.batches.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        self.clock.tick()
        return {"input_ids": torch.full((self.batches.batch,), step, dtype=torch.int64)}


def sparsify(folder: Path, out: Path, race: Race, member: Member, entry: Entry) -> None:
    """EleutherAI sparsify: `Trainer.fit`, which saves. `signum` is its default; `adam` with AuxK is its other way."""
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

    batches = Batches(folder, member.seed, race.batch)
    course = course_of(race, batches)
    settings: dict[str, Any] = {"optimizer": "signum"}
    if "adam" in entry.variant:
        settings = {"optimizer": "adam", "lr_warmup_steps": course.warmup, "auxk_alpha": 1 / 32}
    settings |= {"dead_feature_threshold": course.dead_after, "lr": entry.rate(race.width, member.multiple)}
    config = TrainConfig(
        SparseCoderConfig(num_latents=race.width, k=race.k),
        batch_size=1,
        hookpoints=["layer"],
        init_seeds=[member.seed],
        save_every=10**9,
        log_to_wandb=False,
        run_name="saved",
        save_dir=str(out),
        **settings,
    )
    model: Any = Stored(batches)
    data: Any = StepNumbers(batches, batches.clock)
    Trainer(config, data, model).fit()
    batches.clock.tick()

    loaded: Any = SparseCoder.load_from_disk(out / "saved" / "layer", device="cpu")
    form = Form(loaded.encoder.weight, loaded.encoder.bias, loaded.W_dec, loaded.b_dec, True)
    reconstructed = in_pieces(lambda x: loaded(x).sae_out, parts(folder, "test"))
    leave(out, race, member, entry, form, reconstructed, batches.clock, **settings)


RUNNERS = {"SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}

if __name__ == "__main__":
    os.environ["WANDB_MODE"] = "disabled"
    folder = Path(sys.argv[1])
    race = Race.read(folder)
    torch.set_num_threads(race.threads)
    for member in map(Member.read, sys.argv[2:]):
        entry, out = ENTRIES[member.entry], folder / member.name
        shutil.rmtree(out / "saved", ignore_errors=True)  # of a member that was killed
        RUNNERS[entry.tool](folder, out, race, member, entry)
