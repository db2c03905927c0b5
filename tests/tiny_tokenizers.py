"""Byte-level BPE tokenizers trained on a few sentences, for tests: any text round-trips, nothing is downloaded."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A sparse autoencoder finds directions in the activations of a language model.",
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "In 1969 people first walked on the Moon; nobody has been there since 1972.",
    "Packing puts several documents into one context, and attention stays inside each.",
]


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
