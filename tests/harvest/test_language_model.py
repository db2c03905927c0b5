"""Finding and loading a model: what is not one is named before anything is read; what is loads whole and exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from conftest import save_tiny_model
from sae.harvest.language_model import (
    ModelError,
    ModelSource,
    load_language_model,
    locate_model,
    measure_width,
    skeleton,
)
from sae.harvest.sites import SiteError, resolve_sites
from sae.selftest.gguf_file import write_gguf
from sae.selftest.world import byte_tokenizer
from tiny_models import FAMILIES

CPU = torch.device("cpu")


def locate(name: object) -> ModelSource:
    return locate_model(str(name), trust_remote_code=False)


def load(name: object, precision: str = "auto"):
    return load_language_model(locate(name), device=CPU, precision=precision)


# --- names ---


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nowhere/model", "no such file or folder"),
        ("./model", "no such file or folder"),
        ("~/no-such-model", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("model.gguf", "no such file or folder"),
        ("owner/model.gguf", "no such file or folder"),
        ("two words", "no such file or folder; expected `demo`, a local folder, a .gguf file or a hub id"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(name: str, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        locate(name)
    assert str(refused.value).startswith(f"--model {name}: {says}")


@pytest.mark.parametrize("file", ["adapter_config.json", "model_index.json", "params.json", "pytorch_model.bin"])
def test_a_folder_of_adapters_or_other_things_is_refused_by_what_it_holds(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=rf"the folder has no config\.json \(it holds {file}\)"):
        locate(tmp_path)


def test_files_and_folders_that_hold_no_model_are_refused_by_what_they_hold(tmp_path: Path) -> None:
    for name, says in (("notes.txt", "got a .txt file"), ("weights", "got a plain file")):
        (tmp_path / name).write_text("x")
        with pytest.raises(ModelError, match=f"expected a folder, a .gguf file or a hub id; {says}"):
            locate(tmp_path / name)
    with pytest.raises(ModelError, match=r"no config\.json \(it holds notes\.txt, weights\)"):
        locate(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"it holds nothing"):
        locate(tmp_path / "empty")


def test_a_local_folder_comes_before_the_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "owner").mkdir()
    shutil.copytree(tiny_model, tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/model") == ModelSource("owner/model", "owner/model", None, False)


# --- the hub ---


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_a_hub_id_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    info = HfApi.model_info

    def counted(self: HfApi, name: str, **more: Any) -> Any:
        asked.append(name)
        return info(self, name, **more)

    monkeypatch.setattr(HfApi, "model_info", counted)
    with pytest.raises(ModelError, match=r"nobody/nothing: no local file or folder, and the hub cannot be reached"):
        locate("nobody/nothing")
    assert asked == ["nobody/nothing"]


@pytest.mark.usefixtures("no_hub")
def test_a_cached_model_works_without_a_network(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = locate("owner/tiny")
    assert source.cached
    assert len(resolve_sites(skeleton(source), ["resid_post.*"])) == 3
    lm = load_language_model(source, device=CPU, precision="auto")
    assert lm.provenance["revision"] == commit


def _answers(monkeypatch: pytest.MonkeyPatch, error: Exception | None, sha: str = "c0ffee") -> None:
    class Info:
        pass

    Info.sha = sha  # type: ignore[attr-defined]

    def info(self: HfApi, name: str, **_: Any) -> Any:
        if error is not None:
            raise error
        return Info

    monkeypatch.setattr(HfApi, "model_info", info)


def test_every_file_comes_from_the_commit_that_was_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, None)
    source = locate("owner/model")
    assert source.arguments() == {
        "pretrained_model_name_or_path": "owner/model",
        "trust_remote_code": False,
        "revision": "c0ffee",
    }


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("RepositoryNotFoundError", "the hub has no such model (a private one needs `hf auth login`)"),
        ("GatedRepoError", "accept its terms first, then to log in (`hf auth login`)"),
    ],
)
def test_the_hubs_refusals_are_told_apart(kind: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    _answers(monkeypatch, getattr(errors, kind)("no", response=response))
    with pytest.raises(ModelError) as refused:
        locate("owner/model")
    assert says in str(refused.value)


# --- configs ---


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "its config cannot be read"),
        ("[]", "its config cannot be read"),
        ('{"model_type": "nope"}', "its config cannot be read"),
        ('{"model_type": "llama", "hidden_size": "x"}', "its config cannot be read (Validation error for field"),
        ('{"model_type": "llama", "hidden_size": -8}', "cannot be"),
        ('{"model_type": "llama", "num_hidden_layers": 8323075}', "num_hidden_layers 8323075, expected at most 2,048"),
        ('{"model_type": "gpt2", "n_layer": 4209099689}', "4209099689, expected at most 2,048"),
        ('{"model_type": "mixtral", "num_local_experts": 16777219}', "num_local_experts 16777219, expected at most"),
        ('{"model_type": "t5"}', "T5Model reads one text and writes another"),
        ('{"model_type": "bart"}', "reads one text and writes another"),
        ('{"model_type": "marian", "architectures": ["MarianMTModel"]}', "MarianMTModel reads one text and writes"),
        ('{"model_type": "pegasus", "is_encoder_decoder": true}', "reads one text and writes another"),
        ('{"model_type": "prophetnet"}', "reads one text and writes another"),
        ('{"model_type": "llama", "auto_map": {"AutoConfig": "x.Y"}, "nothing": 1}', None),
    ],
)
def test_a_config_that_makes_no_model_is_refused(config: str, says: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    if says is None:
        assert type(skeleton(locate(tmp_path))).__name__ == "LlamaForCausalLM", "a model's own code is not run"
        return
    with pytest.raises(ModelError) as refused:
        skeleton(locate(tmp_path))
    assert f"--model {tmp_path}: " in str(refused.value)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_skeleton_reads_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)
    model = skeleton(locate(tmp_path))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not model.training
    assert [site.name for site in resolve_sites(model, ["resid_*.2"])] == ["resid_pre.2", "resid_post.2", "resid_mid.2"]
    with pytest.raises(SiteError, match=r"layers 0\.\.2"):
        resolve_sites(model, ["resid_post"], layer=7)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "bert", "opt", "mamba", "bloom", "mixtral"])
def test_skeleton_and_weights_of_a_saved_family_have_the_same_places(family: str, tmp_path: Path) -> None:
    save_tiny_model(family, tmp_path)
    lm = load(tmp_path)
    assert resolve_sites(skeleton(locate(tmp_path)), ["resid_*.*"]) == resolve_sites(lm.model, ["resid_*.*"])
    assert lm.traits.special == {0, 1, 2}


# --- weights ---


def test_loaded_weights_are_the_saved_ones_and_need_no_gradient(tiny_model: Path) -> None:
    lm = load(tiny_model)
    saved = load_file(tiny_model / "model.safetensors")
    state = lm.model.state_dict()
    assert saved.keys() == state.keys()
    for name, tensor in saved.items():
        assert state[name].equal(tensor)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.provenance == {
        "name": str(tiny_model),
        "architecture": "LlamaForCausalLM",
        "revision": None,
        "precision": "float32",
        "parameters": sum(tensor.numel() for tensor in saved.values()),
    }


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_precision_is_float32_on_a_cpu_unless_asked_for(precision: str, tiny_model: Path) -> None:
    lm = load(tiny_model, precision)
    expected = "float32" if precision == "auto" else precision
    assert {parameter.dtype for parameter in lm.model.parameters()} == {getattr(torch, expected)}
    assert lm.provenance["precision"] == expected


def test_precision_is_bfloat16_on_a_gpu(tiny_model: Path) -> None:
    if torch.cuda.is_available():
        lm = load_language_model(locate(tiny_model), device=torch.device("cuda"), precision="auto")
        assert next(lm.model.parameters()).dtype == torch.bfloat16
        return
    # nothing can be moved there, but what would be is in bfloat16
    seen: list[torch.dtype] = []

    def moved(self: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        seen.append(next(self.parameters()).dtype)
        assert device.type == "cuda"
        return self

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("transformers.PreTrainedModel.to", moved)
        load_language_model(locate(tiny_model), device=torch.device("cuda"), precision="auto")
    assert seen[-1] == torch.bfloat16


def _rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(change(tensors), model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_a_missing_tensor_is_refused_and_not_drawn_at_random(name: str, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    _rewrite(model, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ModelError, match=rf"its weights lack 1 tensors of LlamaForCausalLM, such as {name}"):
        load(model)


def test_a_model_saved_without_its_head_can_be_harvested(tmp_path: Path) -> None:
    whole = save_tiny_model("bert", tmp_path / "whole")
    AutoModel.from_pretrained(whole).save_pretrained(tmp_path / "bare")
    byte_tokenizer(300).save_pretrained(tmp_path / "bare")
    lm = load(tmp_path / "bare")
    reference = load(whole)
    for name, tensor in reference.model.bert.encoder.state_dict().items():
        assert lm.model.bert.encoder.state_dict()[name].equal(tensor)


def test_a_bare_model_without_some_weights_is_refused(tmp_path: Path) -> None:
    # an architecture that has no head in transformers is loaded bare, so its tensors have no prefix
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config.num_attention_heads = 4
    CLIPTextModel(config).save_pretrained(tmp_path)
    byte_tokenizer(300).save_pretrained(tmp_path)
    load(tmp_path)
    _rewrite(tmp_path, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(ModelError, match="its weights lack 1 tensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m: (m / "model.safetensors").unlink(), "its weights cannot be loaded"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "its weights cannot be loaded"),
        (lambda m: (m / "model.safetensors").write_bytes(b"x" * 100), "its weights cannot be loaded"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
        (lambda m: _rewrite(m, lambda t: {**t, "lm_head.weight": torch.ones(7, 7)}), "lm_head.weight is [7, 7] in its"),
    ],
    ids=["no file", "empty", "garbage", "tokenizer", "shape"],
)
def test_damaged_files_name_the_model(
    damage: Callable[[Path], Any], says: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    with pytest.raises(ModelError) as refused:
        load(model)
    assert str(refused.value).startswith(f"--model {model}: ")
    assert says in str(refused.value)
    assert "LOAD REPORT" not in capfd.readouterr().err, "one message is enough"


def test_a_tokenizer_that_cannot_be_read_is_noticed_before_the_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "tokenizer.json").write_text("{")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read the weights"))
    with pytest.raises(ModelError, match="tokenizer"):
        load(model)


def test_loading_leaves_the_librarys_messages_as_they_were(tiny_model: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(tiny_model)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- GGUF ---


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
    torch.manual_seed(0)
    model, tokenizer = FAMILIES["llama"](vocab_size=300), byte_tokenizer(300)
    write_gguf(model, tokenizer, tmp_path / "tiny.gguf")
    source = locate(tmp_path / "tiny.gguf")
    assert (source.place, source.gguf) == (str(tmp_path), "tiny.gguf")
    assert [site.width for site in resolve_sites(skeleton(source), ["resid_post.*"])] == [32, 32, 32]
    lm = load_language_model(source, device=CPU, precision="auto")
    ids = lm.tokenizer("the river ran past a mill")["input_ids"]
    assert ids == tokenizer("the river ran past a mill")["input_ids"]
    with torch.no_grad():
        ours, theirs = (m(input_ids=torch.tensor([ids])).logits for m in (lm.model, model))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_control_tokens_of_a_gguf_file_are_special(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
    model, tokenizer = FAMILIES["llama"](vocab_size=300), byte_tokenizer(300)
    control = [token for token in tokenizer.get_vocab() if len(token) > 2 and token.isalpha()][:2]
    write_gguf(model, tokenizer, tmp_path / "tiny.gguf", control)
    lm = load_language_model(locate(tmp_path / "tiny.gguf"), device=CPU, precision="auto")
    ids = set(tokenizer.convert_tokens_to_ids(control))
    assert ids <= lm.traits.special
    assert ids.isdisjoint(lm.tokenizer.all_special_ids), "no name tells"
    assert len(lm.traits.special & set(range(300))) == len(tokenizer.all_special_ids) + 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"not a gguf file at all" * 9])
def test_a_file_that_is_only_named_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf: its config cannot be read"):
        skeleton(locate(tmp_path / "model.gguf"))


# --- widths that only a run tells ---


@pytest.mark.parametrize(
    ("family", "path", "width"),
    [
        ("llama", "model.layers.1.mlp.act_fn", 48),
        ("llama", "model.layers.0.mlp:in", 32),
        ("llama", "model", 32),
        ("gpt2", "transformer.h.1.mlp.act", 128),
        ("gpt2", "transformer.drop", 32),
        ("bert", "bert.encoder.layer.0.intermediate.intermediate_act_fn", 48),
        ("opt", "model.decoder.layers.1.activation_fn", 48),
        ("mamba", "backbone.layers.0.mixer.act", None),
    ],
)
def test_the_width_of_any_module_is_found_without_weights(family: str, path: str, width: int | None) -> None:
    with torch.device("meta"):
        model = FAMILIES[family]().eval()
    (site,) = resolve_sites(model, [path])
    if width is None:
        with pytest.raises(SiteError):
            measure_width(model, site)
        return
    found = measure_width(model, site)
    assert found.width == width
    assert found.name == site.name


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("model.rotary_emb", r"\(1, 8\) rows for \(2, 8\) tokens"),
        ("model.layers", "never reached"),
        ("model.embed_tokens:in", r"\(2, 1\) rows for \(2, 8\) tokens"),
    ],
)
def test_a_place_that_holds_no_vector_a_token_is_refused(path: str, says: str) -> None:
    with torch.device("meta"):
        model = FAMILIES["llama"]().eval()
    (site,) = resolve_sites(model, [path])
    with pytest.raises(SiteError, match=says):
        measure_width(model, site)
