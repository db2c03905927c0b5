"""Roles from the command to the page: what is trained on, kept, evaluated, collected, prompted and steered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from conftest import save_tiny_model
from sae.base.files import read_json
from sae.cli.main import parse
from sae.config import CollectConfig, ConfigError, EvalConfig, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import DataError, open_documents
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.features.steer.prompt import PromptError, examine
from sae.features.steer.steer import Intervention, steer
from sae.features.store.store import FeatureStore
from sae.harvest.language_model import load_language_model, locate_model
from sae.harvest.opening import opening
from sae.harvest.sites import resolve_sites
from sae.harvest.store import MemoryStore, fill_store
from sae.harvest.stream import BOS, KINDS, ORDINARY, OTHER_ROLE, SPECIAL, Harvest
from sae.runs.text import Run, open_run
from sae.selftest.world import corpus_texts
from sae.training.run import TrainResult, train

# short, since the tiny model reads 64 tokens
TEMPLATE = """{% for m in messages %}{{ m['role'][:1] }}:{{ m['content'] }}</s>
{% endfor %}{% if add_generation_prompt %}a:{% endif %}"""
TALK = [{"role": "user", "content": "the river ran"}, {"role": "assistant", "content": "past a mill"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model("llama", tmp_path_factory.mktemp("chat-model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users write capitals, assistants small letters, so that a token betrays its role."""
    texts = corpus_texts(240, seed=3)
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with open(path, "w") as file:
        for asked, answered in zip(texts[::2], texts[1::2], strict=True):
            talk = [{"role": "user", "content": asked[:60].upper()}, {"role": "assistant", "content": answered[:150]}]
            file.write(json.dumps({"source": "src0", "messages": talk}) + "\n")
    return path


@pytest.fixture(scope="module")
def config(model: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    harvest = HarvestConfig(
        model=str(model), dataset=str(chats), layer=1, context=64, contexts=8, roles=("assistant",), heldout=0.3
    )
    return TrainConfig(
        harvest=harvest, sae=SAEConfig(width=64, k=4), optim=OptimConfig(batch=128), tokens=3000, epochs=2,
        store=tmp_path_factory.mktemp("store") / "store", out=tmp_path_factory.mktemp("runs") / "run", device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: TrainConfig) -> TrainResult:
    return train(config)


@pytest.fixture(scope="module")
def run(trained: TrainResult) -> Run:
    return open_run(trained.out)


@pytest.fixture(scope="module")
def lm(run: Run):
    return run.load_language_model(torch.device("cpu"))


def harvest_of(config: TrainConfig, **changes: object) -> Harvest:
    settings = dataclasses.replace(config.harvest, **changes)  # type: ignore[arg-type]
    lm = load_language_model(
        locate_model(settings.model, trust_remote_code=False), device=torch.device("cpu"), precision="auto"
    )
    sites = resolve_sites(lm.model, ["resid_post"], layer=1)
    return Harvest(lm, sites, open_documents(settings.dataset, split="all", roles=settings.roles), settings)


def is_users(text: str) -> bool:
    return any(letter.isupper() for letter in text)


def test_only_tokens_of_the_wanted_roles_are_ordinary(config: TrainConfig) -> None:
    harvest = harvest_of(config)
    counts = dict.fromkeys(range(len(KINDS)), 0)
    for step in harvest.batches():
        for kind in counts:
            tokens = step.rows.token[step.rows.kind == kind].tolist()
            counts[kind] += len(tokens)
            if kind == ORDINARY:
                assert not any(is_users(harvest.lm.tokenizer.decode([token])) for token in tokens)
            elif kind in (BOS, SPECIAL):
                assert set(tokens) <= harvest.lm.traits.special
        kept = harvest.trained_on(step.rows)
        assert set(kept.kind.tolist()) == {ORDINARY}
    assert counts[ORDINARY] > 1000
    assert counts[OTHER_ROLE] > 1000
    assert {name: harvest.counts[name] for name in KINDS} == {KINDS[kind]: n for kind, n in counts.items()}


def test_special_tokens_that_are_kept_are_of_the_wanted_roles_too(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    talk = [{"role": "user", "content": "A</s></s>"}, {"role": "assistant", "content": "b</s>"}]
    path.write_text(json.dumps({"messages": talk}) + "\n")
    harvest = harvest_of(config, dataset=str(path), keep_special=True)
    (step,) = harvest.batches()
    kept = harvest.trained_on(step.rows)
    # one that it says and the end of its turn, of five in all
    assert kept.token.tolist().count(harvest.lm.tokenizer.eos_token_id) == 2


def test_without_roles_all_turns_are_trained_on_and_nothing_is_said_of_roles(config: TrainConfig) -> None:
    harvest = harvest_of(config, roles=None)
    step = next(iter(harvest.batches()))
    assert "other_role" not in harvest.counts
    ordinary = [harvest.lm.tokenizer.decode([t]) for t in step.rows.token[step.rows.kind == ORDINARY].tolist()]
    assert any(map(is_users, ordinary))


def test_documents_prepared_for_the_plan_are_not_prepared_again(config: TrainConfig, tmp_path: Path) -> None:
    harvest = harvest_of(config)
    (tmp_path / "sae_lens.json").write_text('{"tokenizer_name": "owner/nowhere"}')
    (tmp_path / "x.jsonl").write_text('{"input_ids": [4, 5]}\n')
    once = open_documents(tmp_path / "x.jsonl", split="all").with_tokenizer(harvest.lm.tokenizer, ids_below=300)
    again = Harvest(harvest.lm, harvest.sites, once, dataclasses.replace(config.harvest, roles=None))
    assert len(again.documents.notes) == 1


def test_the_median_norm_is_of_the_wanted_roles(config: TrainConfig) -> None:
    limits = []
    for roles in (("assistant",), ("user",), None):
        harvest = harvest_of(config, roles=roles)
        limits.append(harvest.norm_limits)
    assert limits[0] != limits[1] != limits[2]


def test_a_store_holds_what_the_live_stream_trains_on(config: TrainConfig) -> None:
    harvest = harvest_of(config)
    live = torch.cat([harvest.trained_on(step.rows).token for step in harvest.batches()])[:700]
    store = fill_store(
        MemoryStore({"sites": {"resid_post.1": 32}, "precision": "float32"}, 700), harvest, tokens=700,
        progress=lambda rows: None,
    )  # fmt: skip
    assert torch.cat([part.token for part in store.parts]).tolist() == live.tolist()


def test_a_run_records_its_roles_and_says_what_fills_no_batch(trained: TrainResult, config: TrainConfig) -> None:
    record = read_json(trained.out / "config.json")
    assert record["train"]["harvest"]["roles"] == ["assistant"]
    assert record["data"]["kind"] == "chat"
    assert record["data"]["text_field"] == "messages"
    assert trained.tokens_left_over == 3000 % 128
    assert trained.harvested["other_role"] > 500
    identity = read_json(config.store / "identity.json")  # type: ignore[operator]
    assert identity["roles"] == ["assistant"]
    other = dataclasses.replace(
        config, out=config.out.with_name("other"), harvest=dataclasses.replace(config.harvest, roles=("user",))
    )
    with pytest.raises(ConfigError, match="roles"):
        train(other)


def test_evaluation_and_features_leave_out_the_same_tokens(run: Run, lm, config: TrainConfig) -> None:
    report = evaluate(run.folder, EvalConfig(tokens=600, downstream_tokens=200, pca_tokens=300, resamples=10))
    assert report["others"]["other_role"]["tokens"] > 100
    report = collect(run.folder, CollectConfig(tokens=1500))
    assert report["left_out"]["other_role"] > 200
    store = FeatureStore(run.folder)
    latent = int(store.scalars["count"].argmax())
    live = int(store.scalars["count"].sum())
    assert live == report["tokens"] * 4
    assert latent >= 0
    stored = collect(run.folder, CollectConfig(store=config.store, tokens=1500))
    assert stored["tokens"] >= 1400
    assert stored["left_out"].get("other_role", 0) == 0


def test_a_store_of_other_roles_is_refused(run: Run, config: TrainConfig, tmp_path: Path) -> None:
    from sae.features.collect.text_chunks import open_store
    from sae.harvest.shards import sealed

    folder = tmp_path / "store"
    folder.mkdir()
    identity = read_json(config.store / "identity.json")  # type: ignore[operator]
    (folder / "identity.json").write_bytes(sealed({**identity, "roles": None}))
    with pytest.raises(ConfigError, match=r"holds tokens of the roles all, this run is trained on \['assistant'\]"):
        open_store(folder, run)


def test_evaluating_a_chat_run_on_plain_text_is_refused(run: Run, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"--roles assistant: column 'text' of .* where no token has a role"):
        evaluate(run.folder, EvalConfig(dataset=str(corpus), tokens=600))


def test_a_conversation_as_a_prompt_keeps_roles_and_plain_text_has_none(run: Run, lm) -> None:
    answer = examine(run, lm, json.dumps(TALK))
    text = "".join(answer["tokens"])
    assert text == "<s>u:the river ran</s>\na:past a mill</s>\n"
    for kind, role in zip(answer["kinds"], answer["roles"], strict=True):
        assert (kind == "ordinary") == (role == "assistant") or kind in ("bos", "special", "sink")
    said = "".join(t for t, role in zip(answer["tokens"], answer["roles"], strict=True) if role == "assistant")
    assert said == "a:past a mill</s>\n"
    plain = examine(run, lm, "[the river] ran")
    assert "roles" not in plain
    assert "other_role" not in plain["kinds"]
    with pytest.raises(PromptError, match="cannot be read: empty"):
        examine(run, lm, '[{"role": "user", "content": ""}]')


def test_steering_a_conversation_replies_and_leaves_other_roles_alone(run: Run, lm) -> None:
    push = [Intervention(2, "add", 4.0, absolute=True)]
    answer = steer(run, lm, json.dumps(TALK[:1]), push, tokens=4)
    assert "".join(answer["tokens"]["prompt"]).endswith("the river ran</s>\na:")
    # of the prompt, the reply's header alone is the assistant's
    touched = []
    from sae.features.steer import steer as module

    plain = module.steering

    def noted(run, model, effects, places):
        touched.append(places)
        return plain(run, model, effects, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "steering", noted)
        module.steer(run, lm, json.dumps(TALK[:1]), push, tokens=4)
    (places,) = touched
    header = len(lm.tokenizer("a:", add_special_tokens=False)["input_ids"])
    assert places.nonzero().flatten().tolist() == list(range(len(places) - 4 - header, len(places)))


def test_the_beginning_of_the_data_is_shown(config: TrainConfig) -> None:
    harvest = harvest_of(config)
    lines = opening(
        harvest.documents, harvest.lm.tokenizer, config.harvest, beginning=harvest.lm.beginning, width=60
    ).splitlines()
    assert 5 < len(lines) <= 8
    assert lines[0] == f"Data: {config.harvest.dataset}, column 'messages' (chat), all."
    assert all(len(line) <= 60 and line.startswith("  | u:") for line in lines[1:4])
    assert lines[4].startswith("First tokens: '<s>' '")
    assert lines[5].endswith("(attention sinks); tokens of other roles than assistant.")


def test_brackets_and_control_characters_are_shown_as_they_are(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sae.base.progress import Progress

    path = tmp_path / "x.jsonl"
    rows = ["[/INST] [bold]a :smile: \u001b[31m\n\nb", "short", "third", "fourth"]
    path.write_text("".join(json.dumps({"text": text, "input_ids": [4]}) + "\n" for text in rows))
    tokenizer = load_language_model(
        locate_model(str(model), trust_remote_code=False), device=torch.device("cpu"), precision="auto"
    ).tokenizer
    settings = HarvestConfig(model="m", dataset=str(path), max_norm=0, keep_special=True)
    Progress().say(opening(open_documents(path, split="all"), tokenizer, settings, width=80))
    said = capsys.readouterr().err
    assert "  | [/INST] [bold]a :smile: ·[31m b\n  | short\n  | third\n" in said
    assert "fourth" not in said
    assert "Left out: nothing." in said
    assert "Note: 'input_ids' (lists of whole numbers) could be read instead" in said


@pytest.mark.parametrize("given", ["assistant,user", "assistant, assistant", "assistant"])
def test_roles_are_given_with_commas(given: str) -> None:
    config = HarvestConfig(model="m", dataset="d", roles=(given,))
    assert config.roles == tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for wrong in ((), ("",), ("a,,b",)):
        with pytest.raises(ConfigError, match="--roles"):
            HarvestConfig(model="m", dataset="d", roles=wrong)


def test_the_command_shows_the_data_without_weights_and_refuses_roles_of_text(
    model: Path, chats: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", "--model", model, "--layer", 1, "--width", 64, "--k", 4, "--tokens", 3000, "--batch", 128]
    out = ["--context", 64, "--out", tmp_path / "run", "--roles", "assistant", "--dry-run"]
    parse([str(part) for part in (*common, "--dataset", chats, *out)]).run()
    said = capsys.readouterr().err
    assert "column 'messages' (chat), 90% for training" in said
    assert "First tokens: 'u' ':'" in said, "what comes before them is settled with the weights"
    with pytest.raises(DataError, match="--roles assistant: column 'text'"):
        parse([str(part) for part in (*common, "--dataset", corpus, *out)]).run()
