from itertools import pairwise

import pytest
import torch
import transformers

from sae.data.documents import Document
from sae.data.isolation import ISOLATIONS, choose_isolation, isolates_documents, model_inputs, segment_mask
from sae.data.packing import pack
from sae.selftest.world import SENTENCES, byte_tokenizer

CONTEXT = 48
TOKENIZER = byte_tokenizer()
SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OPT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}

# family -> (model class, configuration, the way it needs)
FAMILIES = {
    "llama": ("LlamaModel", "LlamaConfig", GROUPED, "positions"),
    "gpt2": ("GPT2Model", "GPT2Config", {"vocab_size": 512, "n_embd": 32, "n_layer": 3, "n_head": 4}, "positions"),
    "gpt_neox": ("GPTNeoXModel", "GPTNeoXConfig", SIZES, "positions"),
    # the window is shorter than the context
    "gemma3": ("Gemma3TextModel", "Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 8}, "positions"),
    "mistral": ("MistralModel", "MistralConfig", {**GROUPED, "sliding_window": 8}, "positions"),
    "qwen3": ("Qwen3Model", "Qwen3Config", {**GROUPED, "head_dim": 8}, "positions"),
    "opt": ("OPTModel", "OPTConfig", {"vocab_size": 512, **OPT}, "mask"),
    "mpt": ("MptModel", "MptConfig", {"vocab_size": 512, "d_model": 32, "n_layers": 3, "n_heads": 4}, "mask"),
    "bert": ("BertModel", "BertConfig", SIZES, "mask_both"),
    "bloom": ("BloomModel", "BloomConfig", {"vocab_size": 512, "hidden_size": 32, "n_layer": 3, "n_head": 4}, "pad"),
    "roberta": ("RobertaModel", "RobertaConfig", SIZES, "pad"),
    "mamba": ("MambaModel", "MambaConfig", {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2}, "pad"),
}


class Listed:
    def iterate(self, start=0):
        return (Document(number, text) for number, text in enumerate(SENTENCES * 2) if number >= start)


def _tiny(family, **more):
    model, config, sizes, _ = FAMILIES[family]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**sizes, **more)).eval()
    with torch.no_grad():
        for weight in built.parameters():
            # fresh weights hardly attend; with larger ones what a token sees matters, as in a trained model
            if weight.ndim == 2:
                weight.mul_(5)
    return built


@torch.no_grad()
def _error_against_each_segment_alone(model, isolation):
    """Largest relative difference of a segment's hidden states from those of the segment on its own."""
    worst, segments = 0.0, 0
    how = "pad" if isolation == "pad" else "pack"
    for contexts in pack(Listed(), TOKENIZER, context=CONTEXT, batch=3, isolate=how):
        packed = model(**model_inputs(model, contexts, isolation))[0]
        assert packed.isfinite().all(), "padding must not make NaN"
        for row in range(len(packed)):
            begins = [*(contexts.position[row] == 0).nonzero().flatten().tolist(), CONTEXT]
            for begin, end in pairwise(begins):
                if contexts.document[row, begin] < 0:
                    continue
                alone = model(input_ids=contexts.tokens[row : row + 1, begin:end])[0][0]
                worst = max(worst, ((packed[row, begin:end] - alone).norm() / alone.norm()).item())
                segments += 1
    assert segments >= len(SENTENCES) * 2
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_hidden_states_equal_each_document_alone(family):
    model = _tiny(family)
    isolation = choose_isolation(model, CONTEXT)
    assert isolation == FAMILIES[family][3]
    assert _error_against_each_segment_alone(model, isolation) < 1e-5


@pytest.mark.parametrize("family", ["llama", "opt", "bert", "mistral"])
def test_eager_attention_is_cut_as_well(family):
    model = _tiny(family, attn_implementation="eager")
    assert _error_against_each_segment_alone(model, choose_isolation(model, CONTEXT)) < 1e-5


@pytest.mark.parametrize(("family", "isolation"), [("opt", "positions"), ("mistral", "mask"), ("bert", "positions")])
def test_a_way_that_a_family_does_not_follow_is_found_out(family, isolation):
    model = _tiny(family)
    assert not isolates_documents(model, CONTEXT, isolation)
    assert _error_against_each_segment_alone(model, isolation) > 1e-3


def test_a_mask_is_good_enough_where_the_window_is_longer_than_the_context():
    model = _tiny("mistral")
    assert isolates_documents(model, context=8, isolation="mask")
    assert not isolates_documents(model, context=9 * 3, isolation="mask")


def test_trial_works_on_a_model_with_a_head_and_in_half_precision_and_leaves_training_on():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).train()
    assert choose_isolation(model, CONTEXT) == "positions"
    assert model.model.training
    assert model.training


def test_mask_lets_each_token_see_its_segment():
    position = torch.tensor([[0, 1, 2, 0, 1, 0]])
    seen = segment_mask(position)[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    both = segment_mask(position, causal=False)[0, 0]
    assert torch.equal(both, both.T)
    assert both[0, 2]
    assert not both[2, 3]
    added = segment_mask(position, torch.float16)
    assert torch.equal(added == 0, segment_mask(position))
    assert added.isfinite().all()


def test_unknown_isolation_lists_the_known():
    contexts = next(pack(Listed(), TOKENIZER, context=8, batch=1))
    with pytest.raises(ValueError, match=f"'none' is not one of {', '.join(ISOLATIONS)}"):
        model_inputs(_tiny("llama"), contexts, "none")
