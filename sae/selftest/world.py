"""A tiny language model, its tokenizer and a corpus, made in a moment without a download, and runs of seconds on them.

world = make_world(folder)
subprocess.run([sys.executable, "-m", "sae", *world.commands(folder)["train"]])
train(world.config(folder / "run"))
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sae.config import HarvestConfig, OptimConfig, SAEConfig, TrainConfig

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A sparse autoencoder finds directions in the activations of a language model.",
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "In 1969 people first walked on the Moon; nobody has been there since 1972.",
    "Packing puts several documents into one context, and attention stays inside each.",
]
WORDS = (
    "the river ran past a mill where grain was ground while children watched wheels turn and birds flew over green "
    "fields towards hills that hid an old stone town built by people who traded salt iron wool with ships from far "
    "coasts each spring until war closed every road and silence fell on markets once loud with many songs of home"
).split()
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VOCABULARY = 300
SETTINGS: dict[str, Any] = {
    "layer": 1,
    "width": 64,
    "k": 4,
    "tokens": 8_192,
    "batch": 256,
    "context": 64,
    "contexts": 4,
    "buffer_mb": 1,
    "log_every": 1,
    "checkpoint_every": 1_024,
}
"""Of a training run: 32 steps and 8 checkpoints, the two newest of which are kept."""


class World(NamedTuple):
    """What runs need."""

    folder: Path
    """Where all of it is."""
    model: Path
    """Folder of the language model and its tokenizer."""
    texts: Path
    """The corpus, a .jsonl file."""

    def settings(self, **changes: Any) -> dict[str, Any]:
        """SETTINGS with the model, the corpus and some changes; None leaves a setting out."""
        settings = {"model": str(self.model), "dataset": str(self.texts), **SETTINGS, **changes}
        return {name: value for name, value in settings.items() if value is not None}

    def arguments(self, **changes: Any) -> list[str]:
        """Flags of `sae train`, without --out."""
        pairs = self.settings(**changes).items()
        return [part for name, value in pairs for part in (f"--{name.replace('_', '-')}", str(value))]

    def config(self, out: Path, **changes: Any) -> TrainConfig:
        """The settings of a training run that writes `out`."""
        settings = self.settings(**changes)

        def of(cls: type) -> dict[str, Any]:
            return {field.name: settings.pop(field.name) for field in dataclasses.fields(cls) if field.name in settings}

        parts: dict[str, Any] = {
            "harvest": HarvestConfig(**of(HarvestConfig)),
            "sae": SAEConfig(**of(SAEConfig)),
            "optim": OptimConfig(**of(OptimConfig)),
        }
        return TrainConfig(out=out, **parts, **settings)

    def commands(self, folder: Path) -> dict[str, list[str]]:
        """Name -> arguments of a command `sae` that writes in `folder`; features and eval read the run of train."""
        run = str(folder / "run")
        return {
            "train": ["train", *self.arguments(), "--out", run],
            "epochs": [
                "train", *self.arguments(epochs=2, tokens=4_096), "--store", str(folder / "store"),
                "--out", str(folder / "epochs"),
            ],
            "sweep": [
                "sweep", *self.arguments(k="2,4", tokens=4_096), "--evaluate-tokens", "1024",
                "--downstream-tokens", "256", "--out", str(folder / "sweep"),
            ],
            "features": ["features", run, "--tokens", "4096", "--save-every", "0"],
            "eval": [
                "eval", run, "--tokens", "1024", "--downstream-tokens", "256", "--pca-tokens", "1024",
                "--resamples", "20",
            ],
        }  # fmt: skip


def make_world(folder: Path, *, documents: int = 200, seed: int = 0) -> World:
    """Write the model and a corpus, which the seed draws, into a new folder."""
    folder.mkdir(parents=True)
    model = save_model(tiny_llama(), folder / "model")
    return World(folder, model, save_texts(folder / "texts.jsonl", documents, seed))


def tiny_llama() -> Any:
    """A random Llama of LLAMA's sizes and VOCABULARY tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA, vocab_size=VOCABULARY)).eval()
    randomise(model)
    return model


def randomise(model: torch.nn.Module) -> None:
    """Take weights far from their initial values (gains from 1, biases from 0), so that no two sites coincide."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float32) - 0.5
        parameter.data.add_(noise.to(parameter.device) * (0.6 if parameter.ndim == 1 else 0.3))


def save_model(model: Any, folder: Path) -> Path:
    """Save a random model of VOCABULARY tokens with a byte-level tokenizer."""
    # a random model's activations have no structure; larger embeddings give tokens and contexts something to differ by
    model.get_input_embeddings().weight.data.mul_(25)
    model.save_pretrained(folder)
    byte_tokenizer(VOCABULARY).save_pretrained(folder)
    return folder


def save_texts(path: Path, documents: int, seed: int = 0) -> Path:
    """Write a .jsonl file of `corpus_texts` under the field `text`."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(documents, seed)))
    return path


def corpus_texts(documents: int, seed: int = 0) -> list[str]:
    """Texts of 30 to 120 words drawn by a two-word Markov rule, so that a model's activations have structure."""
    draw = random.Random(seed)
    texts = []
    for _ in range(documents):
        place = draw.randrange(len(WORDS))
        words = []
        for _ in range(draw.randrange(30, 120)):
            words.append(WORDS[place])
            place = (place * 7 + draw.choice((1, 2, 5))) % len(WORDS)
        texts.append(" ".join(words) + ".")
    return texts


def byte_tokenizer(
    vocabulary: int = 512, *, bos: bool = True, eos: bool = True, pad: bool = True, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens (at least 256 and the special ones).

    Args:
        bos, eos, pad: whether it has `<s>`, `</s>`, `<pad>`; all False gives one without special tokens.
        adds_bos: put `<s>` before a text unless told not to add special tokens, as Llama's tokenizers do.
    """
    special = [token for token, wanted in (("<s>", bos), ("</s>", eos), ("<pad>", pad)) if wanted]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )
