"""Splicing into a real (tiny) model: closed forms of delta CE, KL and CE recovered; `sae eval` end to end."""

from __future__ import annotations

import json
import math
import weakref
from pathlib import Path

import naive_downstream
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evaluated import DRAWS, autoencoder, measured
from sae.base.files import read_json
from sae.cli.main import main
from sae.config import ConfigError, EvalConfig, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import open_documents
from sae.data.packing import BEGINNING
from sae.evaluation import downstream
from sae.evaluation.losses import ARRAYS, LOGITS, divergence, losses
from sae.evaluation.run import evaluate
from sae.harvest.language_model import measure_width
from sae.harvest.sites import resolve_sites
from sae.harvest.stream import Harvest
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Identity
from sae.training.run import train


def test_kl_is_that_of_the_clean_model_from_the_spliced_one() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): the same both ways; p = (1/2, 1/2), q = (1/4, 3/4): not."""
    turned = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert divergence(*turned).item() == pytest.approx(math.log(2) / 4)
    even, skew = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(even, skew).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert divergence(skew, even).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_losses_are_those_of_whole_passes(harvest: Harvest) -> None:
    dim = harvest.sites[0].width or 0
    model = autoencoder(dim, torch.eye(dim)[: dim // 2], torch.full((dim,), 0.1))
    compare(harvest, downstream.Splice(model, harvest.sites, harvest.sites, torch.full((dim,), 0.3)))


def compare(harvest: Harvest, subject: downstream.Splice) -> None:
    batches = downstream.enough(harvest.contexts(BEGINNING), 500)
    sums = downstream.measure(harvest, {"it": subject}, batches, lambda tokens: None)["it"].sums
    expected = naive_downstream.measure(harvest, subject, batches)
    assert sums.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(sums[name], values, rtol=1e-5, atol=1e-4), name
    assert (sums["kl"].sum() / sums["count"].sum()).item() > 1e-3


def test_losses_of_a_transcoder_and_a_crosscoder_are_those_of_whole_passes(harvest: Harvest) -> None:
    layers = places(harvest, "mlp_in.1", "mlp_out.1")
    width = layers.sites[0].width or 0
    transcoder = Autoencoder(width, 6, Identity(), dim_out=layers.sites[1].width, transcodes=True)
    transcoder.initialise(torch.Generator().manual_seed(0))
    mean = torch.full((layers.sites[1].width or 0,), 0.3)
    compare(layers, downstream.Splice(transcoder, layers.sites[:1], layers.sites[1:], mean))
    both = places(harvest, "resid_post.1", "mlp_out.2")
    dim = sum(site.width or 0 for site in both.sites)
    crosscoder = autoencoder(dim, torch.eye(dim)[::2], torch.zeros(dim))
    compare(both, downstream.Splice(crosscoder, both.sites, both.sites, torch.full((dim,), 0.3)))


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_losses_do_not_depend_on_the_rows_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=draw)
    clean, other = torch.randn(2, 20, 8, generator=draw)
    following = torch.randint(50, (20,), generator=draw)
    monkeypatch.setattr("sae.evaluation.losses.LOGITS", 50 * at_once)
    values = losses(lambda rows: rows @ head.T, clean, {"a": other, "b": other}, following, divergences=["a"])
    log_p, log_q = (clean @ head.T).log_softmax(-1), (other @ head.T).log_softmax(-1)
    expected = {
        "clean": -log_p[torch.arange(20), following],
        "a": -log_q[torch.arange(20), following],
        "b": -log_q[torch.arange(20), following],
        "kl.a": (log_p.exp() * (log_p - log_q)).sum(1),
    }
    assert values.keys() == expected.keys()
    for name, rows in expected.items():
        assert torch.allclose(values[name], rows, atol=1e-5), name


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors made within the block that were alive at one time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, list[int]] = {}  # address -> bytes, tensors that use it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages.setdefault(storage.data_ptr(), [storage.nbytes(), 0])[1] += 1
                weakref.finalize(tensor, self._gone, storage.data_ptr())
        self.peak = max(self.peak, sum(nbytes for nbytes, _ in self._storages.values()))
        return result

    def _gone(self, address: int) -> None:
        self._storages[address][1] -= 1
        if not self._storages[address][1]:
            del self._storages[address]


def test_memory_for_logits_is_bounded_for_a_vocabulary_of_262144() -> None:
    """300 tokens by 262,144 words are 315 MB in float32, for each of three passes."""
    head = torch.randn(262_144, 2)
    clean, other = torch.randn(2, 300, 2)
    following = torch.randint(262_144, (300,))
    with LiveMemory() as memory:
        losses(lambda rows: rows @ head.T, clean, {"a": other, "b": other}, following, divergences=["a"])
    assert LOGITS * 4 < memory.peak <= ARRAYS * LOGITS * 4


def test_reconstructing_the_ablation_recovers_nothing(harvest: Harvest) -> None:
    dim = harvest.sites[0].width
    mean = torch.full((dim,), 0.7)
    constant = autoencoder(dim, torch.zeros(3, dim), mean)
    metrics = measured(harvest, constant, mean)
    assert metrics["ce_recovered_mean"].value == pytest.approx(0, abs=1e-4)
    assert metrics["ce_spliced"].value == pytest.approx(metrics["ce_mean_ablation"].value, rel=1e-6)
    assert metrics["kl"].value > 0


def test_cross_entropy_is_that_of_each_document_alone(harvest: Harvest) -> None:
    """Packed contexts with documents kept apart give the loss of running every segment by itself."""
    dim = harvest.sites[0].width
    contexts = next(iter(harvest.contexts(BEGINNING)))
    identity = autoencoder(dim, torch.eye(dim), torch.zeros(dim))
    subject = downstream.Splice(identity, harvest.sites, harvest.sites, torch.zeros(dim))
    sums = downstream.measure(harvest, {"it": subject}, [contexts], lambda tokens: None)["it"]
    total, count = 0.0, 0
    for row in range(contexts.tokens.shape[0]):
        starts = [*(contexts.position[row] == 0).nonzero().flatten().tolist(), contexts.tokens.shape[1]]
        for first, last in zip(starts, starts[1:], strict=False):
            if contexts.document[row, first] < 0 or last - first < 2:
                continue
            tokens = contexts.tokens[row : row + 1, first:last]
            with torch.no_grad():
                log_p = harvest.lm.model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
            total -= log_p.gather(1, tokens[0, 1:, None]).sum().item()
            count += last - first - 1
    assert int(sums.sums["count"].sum()) == count
    assert sums.sums["clean"].sum().item() == pytest.approx(total, rel=1e-4)


def test_bos_tokens_are_not_replaced_unless_everywhere(harvest: Harvest) -> None:
    dim = harvest.sites[0].width
    metrics = measured(harvest, autoencoder(dim, torch.zeros(3, dim), torch.full((dim,), 9.0)), torch.zeros(dim))
    assert abs(metrics["delta_ce"].value - metrics["delta_ce_everywhere"].value) > 1e-5


@pytest.fixture(scope="module")
def trained(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainConfig(
            harvest=HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, contexts=8),
            sae=SAEConfig(width=128, k=8),
            optim=OptimConfig(batch=256),
            out=out,
            tokens=10_240,
            epochs=2,
        )
    )
    return out


def test_eval_prints_one_json_line_and_keeps_it(trained: Path, capsys: pytest.CaptureFixture) -> None:
    main(["eval", str(trained), "--tokens", "2000", "--downstream-tokens", "500", "--pca-tokens", "2000", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    report = json.loads(lines[0])
    kept = read_json(trained / "eval.json")
    assert len(kept.pop("weights_sha256")) == 64
    assert report == kept
    for name in ("fvu", "l0", "dead", "cosine", "norm_ratio", "reconstruction_bias"):
        assert report[name]["low"] <= report[name]["value"] <= report[name]["high"], name
    assert 0 < report["fvu"]["value"] < 1
    assert report["l0"]["value"] <= 8
    assert report["baselines"]["pca_components"] == 8
    assert report["others"]["bos"]["tokens"] > 0
    assert {"delta_ce", "kl", "ce_recovered_zero", "ce_recovered_mean"} <= report["downstream"].keys()


def test_evaluation_is_on_documents_that_training_never_saw(trained: Path, corpus: Path) -> None:
    seen = {d.text for d in open_documents(str(corpus), split="train")}
    held = {d.text for d in open_documents(str(corpus), split="heldout")}
    assert held
    assert not seen & held
    report = evaluate(trained, EvalConfig(tokens=10**6, downstream_tokens=0, pca_tokens=0, resamples=10))
    assert report["documents"] <= len(held)
    assert report["downstream"] is None


def test_evaluating_twice_gives_the_same_numbers(trained: Path) -> None:
    config = EvalConfig(tokens=1500, downstream_tokens=300, pca_tokens=1000, resamples=50)
    one, two = evaluate(trained, config), evaluate(trained, config)
    one.pop("seconds")
    two.pop("seconds")
    assert one == two


def places(harvest: Harvest, *names: str) -> Harvest:
    """The same harvest at other sites."""
    sites = resolve_sites(harvest.lm.model, list(names))
    other = Harvest(
        harvest.lm, [measure_width(harvest.lm.model, site) for site in sites], harvest.documents, harvest.config
    )
    return other


def test_a_transcoder_without_latents_is_the_ablation_of_its_target(harvest: Harvest) -> None:
    both = places(harvest, "mlp_in.1", "mlp_out.1")
    width = both.sites[0].width or 0
    model = Autoencoder(width, 3, Identity(), dim_out=both.sites[1].width, transcodes=True)
    model.W_enc.data.zero_()
    model.dictionary.W.data.zero_()
    batches = downstream.enough(both.contexts(BEGINNING), 500)
    zero = torch.zeros(both.sites[1].width or 0)
    subject = downstream.Splice(model, both.sites[:1], both.sites[1:], zero)
    sums = downstream.measure(both, {"it": subject}, batches, lambda tokens: None)["it"].sums
    assert torch.allclose(sums["spliced"], sums["zero"])
    assert not torch.allclose(sums["spliced"], sums["clean"])


def test_a_crosscoder_that_gives_every_site_back_costs_nothing(harvest: Harvest) -> None:
    both = places(harvest, "resid_post.1", "resid_post.2")
    dim = sum(site.width or 0 for site in both.sites)
    batches = downstream.enough(both.contexts(BEGINNING), 500)
    identity = autoencoder(dim, torch.eye(dim), torch.zeros(dim))
    half = autoencoder(dim, torch.eye(dim) * (torch.arange(dim) % 2).unsqueeze(1), torch.zeros(dim))
    subjects = {
        name: downstream.Splice(model, both.sites, both.sites, torch.zeros(dim))
        for name, model in (("all", identity), ("half", half))
    }
    sums = downstream.measure(both, subjects, batches, lambda tokens: None)
    metrics = {name: downstream.metrics(s, **DRAWS) for name, s in sums.items()}
    assert metrics["all"]["delta_ce"].value == pytest.approx(0, abs=1e-5)
    assert metrics["half"]["kl"].value > 1e-3 > metrics["all"]["kl"].value
    assert torch.equal(sums["all"].sums["zero"], sums["half"].sums["zero"])


def test_states_that_do_not_fit_are_computed_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvalConfig(tokens=900, downstream_tokens=600, pca_tokens=500, resamples=20)
    kept = evaluate(trained, config)
    monkeypatch.setattr("sae.evaluation.language.KEPT_BYTES", 0)
    again = evaluate(trained, config)
    assert again["downstream"] == kept["downstream"]
    assert again["controls"] == kept["controls"]


def test_losses_may_be_over_more_tokens_than_reconstruction(trained: Path) -> None:
    few = EvalConfig(tokens=200, downstream_tokens=1_200, pca_tokens=0, resamples=20)
    many = EvalConfig(tokens=1_500, downstream_tokens=1_200, pca_tokens=0, resamples=20)
    short, long = evaluate(trained, few), evaluate(trained, many)
    assert (short["tokens"], long["tokens"]) == (200, 1_500)
    assert short["downstream"]["ce_spliced"] == long["downstream"]["ce_spliced"]
    assert [row["control"] for row in short["controls"]] == ["the mean", "shuffled atoms"], "PCA needs training tokens"


def test_controls_are_printed_under_the_autoencoder(trained: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--tokens", "900", "--downstream-tokens", "300", "--pca-tokens", "500", "--resamples", "20"]
    main(["eval", str(trained), *flags])
    table = capsys.readouterr().out
    for name in ("this autoencoder", "the mean", "PCA, 8 components", "the 8 largest channels", "shuffled atoms"):
        assert name in table
    assert "beside its controls" in table
    main(["eval", str(trained), *flags, "--controls", "none", "--json"])
    assert "controls" not in json.loads(capsys.readouterr().out)


def test_controls_that_could_not_be_made_are_refused() -> None:
    with pytest.raises(ConfigError, match="--pca-tokens 0: expected at least 1, on which --controls all trains"):
        EvalConfig(controls="all", pca_tokens=0)
