"""Steering: what is added to the activations, where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from conftest import run_sae, save_tiny_model
from finished_runs import collected_run, finished_run
from sae.config import CollectConfig, EvalConfig
from sae.evaluation.run import evaluate
from sae.evaluation.words import described
from sae.features.collect.collect import collect
from sae.features.steer.inject import steered_tokens, steering
from sae.features.steer.prompt import examine, prompt_ids
from sae.features.steer.steer import Intervention, SteerError, steer
from sae.features.store.keys import FeatureError
from sae.features.store.lens import Lens, UndefinedError
from sae.features.store.store import FeatureStore
from sae.harvest.hooks import capture, harvest_forward
from sae.harvest.intervene import Effect
from sae.harvest.language_model import LanguageModel
from sae.harvest.sites import resolve_sites
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import TopK
from sae.runs.text import Run

PROMPT = "the river ran past a mill"


@pytest.fixture(scope="module")
def run(tiny_model: Path, corpus: Path) -> Run:
    return collected_run(tiny_model, corpus)


@pytest.fixture(scope="module")
def lm(run: Run) -> LanguageModel:
    return run.load_language_model(torch.device("cpu"))


def strongest(run: Run, lm: LanguageModel) -> tuple[int, int, float]:
    """Position, latent and value of an ordinary token's strongest latent in the prompt."""
    found = examine(run, lm, PROMPT)["latents"]
    return 5, found[5][0]["latent"], found[5][0]["value"]


def before_and_after(
    run: Run, lm: LanguageModel, effects: list, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations [S, d] at the run's target of the prompt, plain and steered."""
    ids = prompt_ids(lm, PROMPT)[None]
    site = run.targets[0]
    plain = harvest_forward(lm.model, {"input_ids": ids}, [site])[site.name][0]
    with steering(run, lm.model, [Effect(*e) for e in effects], places), capture(lm.model, [site]) as captured:
        steered = captured.run({"input_ids": ids})[site.name][0]
    return plain, steered


def everywhere(lm: LanguageModel) -> torch.Tensor:
    size = len(prompt_ids(lm, PROMPT))
    return steered_tokens("every", prompt=size, skip_first=True, total=size)


def test_add_moves_every_token_but_bos_along_the_atom(run: Run, lm: LanguageModel) -> None:
    plain, steered = before_and_after(run, lm, [(3, "add", 2.5), (7, "add", -1.0)], everywhere(lm))
    atoms = run.model.dictionary.W.detach()
    torch.testing.assert_close(steered[0], plain[0])
    expected = (2.5 * atoms[3] - atoms[7]).expand_as(plain[1:])
    torch.testing.assert_close(steered[1:] - plain[1:], expected, rtol=1e-4, atol=1e-4)


def test_set_and_ablate_keep_what_the_autoencoder_misses(run: Run, lm: LanguageModel) -> None:
    position, latent, value = strongest(run, lm)
    atom = run.model.dictionary.W.detach()[latent]
    for mode, target in (("set", 4.0), ("ablate", 0.0)):
        plain, steered = before_and_after(run, lm, [(latent, mode, target)], everywhere(lm))
        moved = (steered - plain)[position]
        torch.testing.assert_close(moved, (target - value) * atom, rtol=1e-3, atol=1e-4)
    # where the latent is silent there is nothing to take away
    silent = next(
        i
        for i, fires in enumerate(examine(run, lm, PROMPT)["latents"])
        if i and latent not in {f["latent"] for f in fires}
    )
    torch.testing.assert_close(steered[silent], plain[silent])


def test_only_the_given_tokens_are_touched(run: Run, lm: LanguageModel) -> None:
    size = len(prompt_ids(lm, PROMPT))
    chosen = steered_tokens([0, 4], prompt=size, skip_first=True, total=size)
    plain, steered = before_and_after(run, lm, [(3, "add", 5.0)], chosen)
    assert (steered - plain).norm(dim=1).gt(1e-3).nonzero().flatten().tolist() == [0, 4]


def test_strength_is_in_units_of_the_maximum(run: Run, lm: LanguageModel) -> None:
    store = FeatureStore(run.folder)
    latent = int(store.scalars["count"].argmax())
    found = steer(run, lm, PROMPT, [Intervention(latent, "add", 2.0)], tokens=8)
    maximum = float(store.scalars["max"][latent])
    assert found["interventions"] == [
        {"latent": latent, "mode": "add", "strength": 2.0, "value": 2.0 * maximum, "maximum": maximum}
    ]
    same = steer(run, lm, PROMPT, [Intervention(latent, "add", 2.0 * maximum, absolute=True)], tokens=8)
    assert same["steered"] == found["steered"]
    assert len(found["kl"]) == len(found["tokens"]["steered"])


def test_strength_zero_changes_nothing_and_more_strength_more(run: Run, lm: LanguageModel) -> None:
    for temperature in (0.0, 1.0):
        same = steer(
            run, lm, PROMPT, [Intervention(3, strength=0.0, absolute=True)], tokens=12, temperature=temperature
        )
        assert same["steered"] == same["plain"]
        assert same["mean_kl"] < 1e-4
    weak, strong = (
        steer(run, lm, PROMPT, [Intervention(3, strength=s, absolute=True)], tokens=6)["kl"][0] for s in (5.0, 40.0)
    )
    assert 1e-5 < weak < strong


def test_plain_text_is_what_the_model_writes_alone(run: Run, lm: LanguageModel) -> None:
    found = steer(run, lm, PROMPT, [Intervention(3, strength=40.0, absolute=True)], tokens=10)
    ids = prompt_ids(lm, PROMPT)[None]
    generate: Any = lm.model.generate
    written = generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found["plain"] == lm.tokenizer.decode(written, skip_special_tokens=True)


def test_drawing_repeats_with_the_seed_and_leaves_other_draws_alone(run: Run, lm: LanguageModel) -> None:
    def drawn(seed: int) -> str:
        how = {"tokens": 8, "temperature": 1.5, "seed": seed}
        return steer(run, lm, PROMPT, [Intervention(3, strength=1.0, absolute=True)], **how)["plain"]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = drawn(1)
    torch.testing.assert_close(torch.rand(3), expected)
    assert first == drawn(1)
    assert first != drawn(2)


def test_generated_alone_leaves_the_prompt_and_so_the_first_token(run: Run, lm: LanguageModel) -> None:
    found = steer(run, lm, PROMPT, [Intervention(3, strength=60.0, absolute=True)], tokens=6, where="generated")
    assert found["kl"][0] < 1e-4
    assert max(found["kl"][1:]) > 1e-2


def test_a_transcoder_is_steered_where_it_writes(run: Run, lm: LanguageModel) -> None:
    target = resolve_sites(lm.model, ["mlp_out"], layer=2)
    transcoder = run._replace(targets=target)
    plain, steered = before_and_after(transcoder, lm, [(3, "add", 2.0)], everywhere(lm))
    expected = (2.0 * run.model.dictionary.W.detach()[3]).expand_as(plain[1:])
    torch.testing.assert_close(steered[1:] - plain[1:], expected, rtol=1e-4, atol=1e-4)
    found = steer(transcoder, lm, PROMPT, [Intervention(3, "ablate")], tokens=4)
    assert found["site"] == "mlp_out.2"
    assert found["note"] == "this run predicts mlp_out.2 from resid_post.1: the atoms are added at mlp_out.2"


def test_several_sites_are_written_but_not_read_in_time(run: Run, lm: LanguageModel) -> None:
    sites = resolve_sites(lm.model, ["resid_post.1", "resid_post.2"])
    crosscoder = Autoencoder(64, 128, TopK(8))
    several = run._replace(model=crosscoder, inputs=sites, targets=sites)
    with pytest.raises(SteerError, match=r"resid_post\.2, which the model computes after resid_post\.1"):
        steer(several, lm, PROMPT, [Intervention(3, "ablate")], tokens=4)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([Intervention(128)], {}, "latents 0 to 127"),
        ([Intervention(-1)], {}, "latents 0 to 127"),
        ([Intervention(3), Intervention(3)], {}, "given twice"),
        ([Intervention(3, strength=float("nan"))], {}, "finite"),
        ([Intervention(3, "set", -1.0)], {}, "never negative"),
        ([Intervention(3, cast(Any, "push"))], {}, "add, set, ablate"),
        ([], {}, "at least one latent"),
        ([Intervention(3, absolute=True)], {"where": [400]}, "tokens 0 to"),
        ([Intervention(3, absolute=True)], {"tokens": 10_000}, "ask for fewer"),
        ([Intervention(3, absolute=True)], {"temperature": -1.0}, "0 \\(greedy\\) or more"),
        ([Intervention(3, strength=1e38, absolute=True)], {}, "lower it"),
    ],
)
def test_what_cannot_be_done_is_refused(run: Run, lm: LanguageModel, given: list, options: dict, said: str) -> None:
    with pytest.raises(SteerError, match=said):
        steer(run, lm, PROMPT, given, **{"tokens": 4, **options})


def test_a_latent_that_never_fired_needs_absolute(run: Run, lm: LanguageModel) -> None:
    store = FeatureStore(run.folder)
    scalars = store.scalars.copy()
    scalars["count"][3] = scalars["max"][3] = 0
    store.scalars = scalars  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SteerError, match=r"never fired .* --absolute"):
        steer(run, lm, PROMPT, [Intervention(3)], tokens=4, store=store)


def test_without_features_the_way_out_is_named(tiny_model: Path, corpus: Path, lm: LanguageModel) -> None:
    bare = finished_run(tiny_model, corpus)
    with pytest.raises(FeatureError, match=r"sae features .* --absolute"):
        steer(bare, lm, PROMPT, [Intervention(3)], tokens=4)
    assert steer(bare, lm, PROMPT, [Intervention(3, "ablate")], tokens=4)["plain"]


def test_an_encoder_predicts_no_next_token_whichever_command_asks(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder_run = finished_run(save_tiny_model("bert", tmp_path / "model"), corpus)
    encoder = encoder_run.load_language_model(torch.device("cpu"))
    with pytest.raises(SteerError, match=r"predicts no next token.*BertForMaskedLM reads both ways"):
        steer(encoder_run, encoder, PROMPT, [Intervention(3, absolute=True)], tokens=4)
    with pytest.raises(UndefinedError, match=r"predicts no next token.*BertForMaskedLM reads both ways"):
        Lens(encoder_run.folder, "weights").logits(3)
    report = evaluate(encoder_run.folder, EvalConfig(tokens=512, downstream_tokens=256, pca_tokens=512, resamples=10))
    assert report["downstream"] is None
    assert report["downstream_missing"] == "BertForMaskedLM reads both ways"
    assert described(report, "language")[-1].meaning.endswith("predicts no next token: BertForMaskedLM reads both ways")
    assert "predicts no next token (BertForMaskedLM reads both ways)" in capsys.readouterr().err
    collect(encoder_run.folder, CollectConfig(tokens=256))
    assert FeatureStore(encoder_run.folder).info["no_next_token"] == "BertForMaskedLM reads both ways"


def test_the_command_prints_both_texts(run: Run) -> None:
    done = run_sae(
        "steer",
        run.folder,
        "--latent",
        3,
        7,
        "--scale",
        1,
        0.5,
        "--prompt",
        PROMPT,
        "--tokens",
        6,
        "--absolute",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [i["value"] for i in found["interventions"]] == [1.0, 0.5]
    assert "plain" in done.stderr
