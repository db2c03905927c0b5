"""What a model is: its head, whether it predicts next tokens, how much it reads, which tokens it can look up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from sae.config import ConfigError, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import Document, open_documents
from sae.features.steer.prompt import PromptError, prompt_ids
from sae.harvest.beginning import settle
from sae.harvest.language_model import LanguageModel, ModelError, load_language_model, locate_model, skeleton
from sae.harvest.sites import resolve_sites
from sae.harvest.stream import Harvest
from sae.harvest.traits import known_limit, special_tokens
from sae.selftest.world import byte_tokenizer
from sae.training.plan import make_plan
from sae.training.run import train
from sae.training.text import TextData
from tiny_models import BERT_LIKE, LLAMA_LIKE, VISION

WORDS = 300
DISTIL = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "max_position_embeddings": 64}
VL_VISION = {"depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 4, "patch_size": 8, "out_hidden_size": 32}
BART = {
    **{"d_model": 32, "max_position_embeddings": 64, "is_decoder": True, "is_encoder_decoder": False},
    **{f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 4))},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def build(name: str, config: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


def text(**more: Any) -> dict[str, Any]:
    return {**LLAMA_LIKE, "vocab_size": WORDS, **more}


def both(**more: Any) -> dict[str, Any]:
    return {**BERT_LIKE, "vocab_size": WORDS, **more}


def save(model: Any, folder: Path, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer(WORDS)).save_pretrained(folder)
    return folder


def load(folder: Path) -> LanguageModel:
    source = locate_model(str(folder), trust_remote_code=False)
    return load_language_model(source, device=torch.device("cpu"), precision="auto")


MODELS: dict[str, tuple[Callable[[], Any], bool, bool, bool, str]] = {
    # has a head, reads both ways, wraps a text model, class that is loaded
    "llama": (lambda: build("LlamaForCausalLM", "LlamaConfig", **text()), True, False, False, "LlamaForCausalLM"),
    "bare llama": (lambda: build("LlamaModel", "LlamaConfig", **text()), False, False, False, "LlamaForCausalLM"),
    "bare qwen2": (lambda: build("Qwen2Model", "Qwen2Config", **text()), False, False, False, "Qwen2ForCausalLM"),
    "bare tied llama": (
        lambda: build("LlamaModel", "LlamaConfig", **text(tie_word_embeddings=True)),
        *(True, False, False, "LlamaForCausalLM"),
    ),
    "bare gpt2, tied": (
        lambda: build("GPT2Model", "GPT2Config", n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=WORDS),
        *(True, False, False, "GPT2LMHeadModel"),
    ),
    "bert": (lambda: build("BertForMaskedLM", "BertConfig", **both()), True, True, False, "BertForMaskedLM"),
    "bert decoder": (
        lambda: build("BertLMHeadModel", "BertConfig", **both(is_decoder=True)),
        *(True, False, False, "BertLMHeadModel"),
    ),
    "bert saved as a causal model": (
        lambda: build("BertLMHeadModel", "BertConfig", **both()),
        *(True, True, False, "BertForMaskedLM"),
    ),
    "bare bert": (lambda: build("BertModel", "BertConfig", **both()), False, True, False, "BertForMaskedLM"),
    "bare distilbert": (
        lambda: build("DistilBertModel", "DistilBertConfig", **DISTIL, vocab_size=WORDS),
        *(False, True, False, "DistilBertForMaskedLM"),
    ),
    "modernbert": (
        lambda: build("ModernBertForMaskedLM", "ModernBertConfig", **both(cls_token_id=1, sep_token_id=2)),
        *(True, True, False, "ModernBertForMaskedLM"),
    ),
    "xlm-r": (
        lambda: build("XLMRobertaForMaskedLM", "XLMRobertaConfig", **both()),
        *(True, True, False, "XLMRobertaForMaskedLM"),
    ),
    "longformer": (
        lambda: build("LongformerForMaskedLM", "LongformerConfig", **both(pad_token_id=1, attention_window=[4] * 3)),
        *(True, True, False, "LongformerForMaskedLM"),
    ),
    "deberta": (
        lambda: build(
            "DebertaV2ForMaskedLM",
            "DebertaV2Config",
            **both(relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]),
        ),
        *(True, True, False, "DebertaV2ForMaskedLM"),
    ),
    "gemma made an encoder": (
        lambda: build("Gemma3ForCausalLM", "Gemma3TextConfig", **text(head_dim=8, use_bidirectional_attention=True)),
        *(True, True, False, "Gemma3ForCausalLM"),
    ),
    "bart's decoder": (
        lambda: build("BartForCausalLM", "BartConfig", **BART, vocab_size=WORDS),
        *(True, False, False, "BartForCausalLM"),
    ),
    "bare gpt-neox": (
        lambda: build("GPTNeoXModel", "GPTNeoXConfig", **both()),
        *(False, False, False, "GPTNeoXForCausalLM"),
    ),
    "classifier": (
        lambda: build("LlamaForSequenceClassification", "LlamaConfig", **text()),
        *(False, False, False, "LlamaForCausalLM"),
    ),
    # its prefix, images and prompt, reads both ways; so does text alone, where no token is said to be the answer's
    "paligemma": (
        lambda: build(
            "PaliGemmaForConditionalGeneration",
            "PaliGemmaConfig",
            text_config=transformers.GemmaConfig(**text(head_dim=8)),
            vision_config=transformers.SiglipVisionConfig(**VISION),
            image_token_index=5,
            projection_dim=32,
        ),
        *(True, True, True, "PaliGemmaForConditionalGeneration"),
    ),
    "gemma 3 with images": (
        lambda: build(
            "Gemma3ForConditionalGeneration",
            "Gemma3Config",
            text_config=text(head_dim=8),
            vision_config=VISION,
            mm_tokens_per_image=4,
            image_token_index=5,
        ),
        *(True, False, True, "Gemma3ForConditionalGeneration"),
    ),
    "llava": (
        lambda: build(
            "LlavaForConditionalGeneration",
            "LlavaConfig",
            text_config=transformers.LlamaConfig(**text()),
            vision_config=transformers.CLIPVisionConfig(**VISION),
            image_token_index=5,
        ),
        *(True, False, True, "LlavaForConditionalGeneration"),
    ),
    "bare llava": (
        lambda: build(
            "LlavaModel",
            "LlavaConfig",
            text_config=transformers.LlamaConfig(**text()),
            vision_config=transformers.CLIPVisionConfig(**VISION),
            image_token_index=5,
        ),
        *(False, False, True, "LlavaForConditionalGeneration"),
    ),
    "qwen2-vl": (
        lambda: build(
            "Qwen2VLForConditionalGeneration",
            "Qwen2VLConfig",
            text_config=text(rope_parameters=ROPE),
            vision_config=VL_VISION,
        ),
        *(True, False, True, "Qwen2VLForConditionalGeneration"),
    ),
    "qwen2.5-vl": (
        lambda: build(
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2_5_VLConfig",
            text_config=text(rope_parameters=ROPE),
            vision_config={**VL_VISION, "intermediate_size": 48},
        ),
        *(True, False, True, "Qwen2_5_VLForConditionalGeneration"),
    ),
    "idefics3": (
        lambda: build(
            "Idefics3ForConditionalGeneration",
            "Idefics3Config",
            text_config=transformers.LlamaConfig(**text()),
            vision_config=VISION,
            image_token_id=5,
        ),
        *(True, False, True, "Idefics3ForConditionalGeneration"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_head_and_direction_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    make, has_head, both_ways, wraps, loaded = MODELS[name]
    lm = load(save(make(), tmp_path))
    traits = lm.traits
    assert type(lm.model).__name__ == loaded
    assert (traits.has_head, traits.bidirectional, traits.wraps_text) == (has_head, both_ways, wraps)
    assert traits.predicts_next == (has_head and not both_ways)
    assert (traits.no_next_token or "").endswith(
        "" if traits.predicts_next else "holds no output head" if not has_head else "reads both ways"
    )
    assert traits.limit == {"xlm-r": 63, "longformer": 62}.get(name, 64)
    if not has_head:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[7, 8, 9]])).logits
        assert not torch.isfinite(logits).any(), "a head drawn at random must not give an answer"


LIMITS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "roberta": (lambda: build("RobertaForMaskedLM", "RobertaConfig", **both(pad_token_id=1)), 62),
    "mpnet": (lambda: build("MPNetForMaskedLM", "MPNetConfig", **both(pad_token_id=1)), 62),
    "opt": (
        lambda: build("OPTForCausalLM", "OPTConfig", **both(ffn_dim=48, word_embed_proj_dim=32, pad_token_id=1)),
        64,
    ),
    "camembert": (lambda: build("CamembertForMaskedLM", "CamembertConfig", **both(pad_token_id=1)), 62),
    "longformer": (
        lambda: build("LongformerForMaskedLM", "LongformerConfig", **both(pad_token_id=1, attention_window=[4] * 3)),
        62,
    ),
    "esm": (
        lambda: build("EsmForMaskedLM", "EsmConfig", **both(pad_token_id=1, mask_token_id=4)),
        62,
    ),
    "biogpt": (lambda: build("BioGptForCausalLM", "BioGptConfig", **both(pad_token_id=1)), 64),
    "xglm, whose positions are computed": (
        lambda: build("XGLMForCausalLM", "XGLMConfig", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4,
                      max_position_embeddings=64, vocab_size=WORDS, pad_token_id=1),
        64,
    ),
    "mistral, whose window is shorter": (
        lambda: build("MistralForCausalLM", "MistralConfig", **text(sliding_window=4)),
        64,
    ),
    "mpt": (
        lambda: build("MptForCausalLM", "MptConfig", d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
                      vocab_size=WORDS),
        64,
    ),
    "gpt1": (
        lambda: build("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", n_embd=32, n_head=4, n_layer=2, n_positions=64,
                      vocab_size=WORDS),
        64,
    ),
    "ctrl": (
        lambda: build("CTRLLMHeadModel", "CTRLConfig", n_embd=32, n_head=4, n_layer=2, dff=48, n_positions=64,
                      vocab_size=WORDS),
        64,
    ),
    "mamba": (
        lambda: build("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4,
                      vocab_size=WORDS),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_the_usable_length_runs_and_one_more_does_not(name: str, tmp_path: Path) -> None:
    make, limit = LIMITS[name]
    folder = save(make(), tmp_path)
    lm = load(folder)
    assert lm.traits.limit == limit
    source = locate_model(str(folder), trust_remote_code=False)
    assert known_limit(skeleton(source)) == limit, "known before weights are read"
    with torch.no_grad():
        lm.model(input_ids=torch.full((1, limit or 64), 70))
        if name in ("roberta", "mpnet", "opt", "gpt1", "camembert", "longformer", "esm", "biogpt"):
            with pytest.raises((IndexError, RuntimeError)):
                lm.model(input_ids=torch.full((1, limit + 1), 70))


def test_a_context_over_the_usable_length_is_refused_with_it(corpus: Path, tmp_path: Path) -> None:
    model = save(LIMITS["roberta"][0](), tmp_path / "model")

    def config(context: int) -> TrainConfig:
        settings = HarvestConfig(model=str(model), dataset=str(corpus), layer=1, context=context, contexts=4)
        return TrainConfig(
            harvest=settings,
            sae=SAEConfig(width=64, k=4),
            optim=OptimConfig(batch=64),
            out=tmp_path / "run",
            tokens=640,
        )

    with pytest.raises(ConfigError, match=r"--context 64: this model reads at most 62 tokens"):
        make_plan(config(64))
    lm, data = load(model), make_plan(config(62)).data
    assert isinstance(data, TextData)
    assert sum(1 for _ in Harvest(lm, data.sites, data.documents, data.config.harvest).batches()) > 1


@pytest.mark.parametrize("breaks", ["error", "nan"])
def test_a_length_that_nothing_states_is_noticed_before_the_first_batch(breaks: str, tmp_path: Path) -> None:
    """Positions come from a table that no config names and no lookup shows; short documents do not reach its end."""
    lm = load(save(MODELS["llama"][0](), tmp_path / "model"))
    table = torch.zeros(40)

    def look_up(module: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        positions = options.get("position_ids", given[-1])
        if breaks == "error":
            return (given[0] + table[positions][..., None], *given[1:]), options
        return (given[0].masked_fill(positions[..., None] >= 40, torch.nan), *given[1:]), options

    lm.model.model.layers[0].register_forward_pre_hook(look_up, with_kwargs=True)  # type: ignore[union-attr]
    path = tmp_path / "texts.jsonl"
    lines = ["the river ran"] * 60 + ["the river ran past a mill " * 9]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    documents = open_documents(path, split="all", heldout=0.1)

    def harvest(context: int) -> Harvest:
        config = HarvestConfig(model="m", dataset="d", context=context, contexts=2)
        return Harvest(lm, resolve_sites(lm.model, ["resid_post.1"]), documents, config)

    with pytest.raises(ModelError, match=r"--context 48: m cannot read that many tokens in a row.*lower --context"):
        next(harvest(48).batches())
    assert len(list(harvest(40).batches())) > 3


def wordpiece() -> Any:
    """A tokenizer of another kind, with a token that only its list of added tokens flags as special."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


FLAGGED: dict[str, Callable[[Any], Any]] = {
    "by the library": lambda tokenizer: tokenizer._tokenizer.add_special_tokens([AddedToken("<|h|>", special=True)]),
    "by transformers": lambda tokenizer: tokenizer.add_tokens([AddedToken("<|h|>", special=True)]),
    "named beside others": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<|h|>"]}),
    "by transformers' switch": lambda tokenizer: tokenizer.add_tokens(["<|h|>"], special_tokens=True),
}


@pytest.mark.parametrize("how", FLAGGED)
@pytest.mark.parametrize("make", [lambda: byte_tokenizer(280), wordpiece], ids=["bytes", "wordpiece"])
def test_tokens_flagged_special_are_special_though_none_names_them(
    how: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    tokenizer = make()
    FLAGGED[how](tokenizer)
    header = tokenizer.convert_tokens_to_ids("<|h|>")
    tokenizer.save_pretrained(tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert header in special_tokens(read)
    assert read.convert_tokens_to_ids("the") not in special_tokens(read)


@pytest.mark.parametrize(
    "where", ["it fills rows", "it is in the text", "it begins every segment", "it is in the prompt"]
)
def test_an_id_outside_the_embedding_is_refused_by_name_only_where_it_occurs(where: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(WORDS)
    tokenizer.add_tokens(["<new>"])
    if where == "it fills rows":
        tokenizer.pad_token = "<new>"
    model = save(MODELS["llama"][0](), tmp_path / "model", tokenizer)
    for name, line in (("plain", "the river ran"), ("new", "the river <new> ran")):
        rows = [json.dumps({"text": f"{line} {number}"}) for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))

    def begin(texts: str, bos: str = "auto") -> None:
        dataset = str(tmp_path / f"{texts}.jsonl")
        train(
            TrainConfig(
                harvest=HarvestConfig(model=str(model), dataset=dataset, layer=1, context=16, contexts=2, bos=bos),
                sae=SAEConfig(width=64, k=4),
                optim=OptimConfig(batch=64),
                out=tmp_path / f"{texts}-{bos}",
                tokens=128,
                device="cpu",
            )
        )

    says = rf"--model .*: '<new>' \({where}\) has id 300, and the embedding has 300 rows; resize it"
    if where == "it fills rows":
        with pytest.raises(ModelError, match=says):
            begin("plain")
        return
    begin("plain")
    if where == "it is in the prompt":
        with pytest.raises(PromptError, match=says):
            prompt_ids(load(model), "the <new> river")
        return
    bos = ("auto", "none", "<s>") if where == "it is in the text" else ("<new>",)
    for given in bos:
        with pytest.raises(ModelError, match=says):
            begin("new" if len(bos) > 1 else "plain", given)


def test_a_named_beginning_outside_the_embedding_is_not_tried(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(WORDS, bos=False)
    tokenizer.add_tokens(["<new>"])
    tokenizer.bos_token = "<new>"
    lm = load(save(MODELS["llama"][0](), tmp_path, tokenizer))
    config = HarvestConfig(model="m", dataset="d")
    documents: Any = Listed([Document(0, "the river ran past a mill")])
    assert settle(lm, config, documents).ids in ((), (tokenizer.eos_token_id,))


class Listed(list[Document]):
    """Documents as `pack` reads them."""

    def iterate(self, start: int = 0) -> Iterator[Document]:
        return iter(self[start:])
