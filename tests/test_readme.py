"""Every command of the README runs: with a tiny model, a small text and few tokens in place of those that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae.cli.main import main

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("sae ")]
ELSEWHERE = {
    "train --resume": ("test_kill.py", "test_a_killed_run_resumes_to_identical_weights"),
    "browse": ("browser/test_page.py", "test_the_table_sorts_and_filters_and_the_address_keeps_it"),
    "match runs/demo runs/seed1 runs/seed2 --pool": (
        "evaluation/test_match_runs.py",
        "test_the_pool_holds_the_stable_latents_unchanged_and_is_evaluated_like_any_run",
    ),
    "match": (
        "evaluation/test_match_runs.py",
        "test_another_seed_is_less_alike_than_a_copy_and_a_latent_left_out_is_gone",
    ),
    "measure": (
        "evaluation/test_measure_runs.py",
        "test_the_user_s_labels_are_probed_and_removed_beside_every_control_and_kept",
    ),
    "sweep --model demo --dataset demo --layer 9 --k 32": (
        "reporting/test_variants.py",
        "test_a_sweep_with_seeds_compares_its_variants",
    ),
    "compare": ("reporting/test_variants.py", "test_compare_takes_another_reference"),
    "choose-l0 --model": (
        "evaluation/test_choose_l0.py",
        "test_the_flags_of_a_sweep_give_its_members_with_two_seeds",
    ),
    "choose-l0 runs": (
        "evaluation/test_choose_l0.py",
        "test_runs_that_differ_in_k_alone_are_levels_and_their_curve_is_drawn",
    ),
    "list --model": ("interop/test_listing.py", "test_a_model_and_a_layer_list_short_names_that_can_be_fetched"),
    "import gemma-scope": ("interop/test_sources.py", "test_an_import_by_short_name_is_measured_on_its_language_model"),
    "import their_sae": ("interop/test_importing.py", "test_an_imported_run_is_evaluated_and_collected_like_ours"),
    "import their_clt:3": (
        "interop/test_importing.py",
        "test_a_layer_of_a_cross_layer_transcoder_is_measured_at_all_its_targets",
    ),
    "eval their_sae": ("interop/test_opening.py", "test_commands_import_what_names_its_model_and_keep_the_import"),
    "image chapter": ("test_chapter_generative.py", "test_every_family_is_measured_and_shown"),
    "image compare": ("test_comparison.py", "test_all_tiers_stand_in_one_table_with_every_column"),
    "train --model demo --dataset chats.jsonl": (
        "harvest/test_roles.py",
        "test_a_run_records_its_roles_and_says_what_fills_no_batch",
    ),
    "train --model demo --dataset tokenized/": (
        "data/test_token_ids.py",
        "test_ids_reach_the_model_as_they_are_and_resume_from_any_cursor",
    ),
    "steer runs/demo --latent 304 --measure": (
        "features/test_steer_measure.py",
        "test_every_method_is_measured_at_every_dose",
    ),
    "steer runs/chat": ("harvest/test_roles.py", "test_steering_a_conversation_replies_and_leaves_other_roles_alone"),
}
"""Beginning of a command -> the file and the name of a test that runs it, because it needs more than is made here."""
SMALLER = {"--width": "64", "--k": "4", "--tokens": "4096", "--layer": "1", "--latent": "3"}
MORE = {
    "train --model": ["--context", "64", "--contexts", "4", "--batch", "256"],
    "train --data": ["--batch", "256"],
    "harvest": ["--context", "64", "--contexts", "4"],
    "sweep": ["--context", "64", "--contexts", "4", "--batch", "256"],
    "eval": ["--tokens", "1024", "--downstream-tokens", "512", "--pca-tokens", "1024", "--resamples", "10"],
    "features": ["--tokens", "4096"],
    "explain": ["--latents", "3", "5"],
    "steer": ["--tokens", "4"],
    "image train": ["--epochs", "1"],
}


def elsewhere(command: list[str]) -> tuple[str, str] | None:
    spelled = " ".join(command)
    return next((test for start, test in ELSEWHERE.items() if spelled.startswith(start)), None)


def smaller(command: list[str], model: Path, text: Path) -> list[str]:
    """The command on what this test can give it."""
    given = {**SMALLER, "--model": str(model), "--dataset": str(text)}
    names = {"runs/demo": "runs/pythia"}  # the demo's run needs the demo's model
    parts = [names.get(part, part) for part in command]
    for flag, value in given.items():
        if flag in parts:
            place = parts.index(flag) + 1
            parts[place] = "2,4" if "," in parts[place] and flag == "--k" else value
    spelled = " ".join(command)
    return [*parts, *next((flags for start, flags in MORE.items() if spelled.startswith(start)), [])]


def test_every_command_of_the_readme_runs(
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"rows": torch.randn(4096, 32)}, "activations.safetensors")
    here = [command for command in COMMANDS if elsewhere(command) is None]
    assert len(here) >= 12
    for command in here:
        arguments = smaller(command, tiny_model, corpus)
        try:
            main(arguments)
        except SystemExit as stopped:
            raise AssertionError(f"{arguments}: {capsys.readouterr().err[-2000:]}") from stopped


@pytest.mark.parametrize(("file", "name"), ELSEWHERE.values())
def test_the_other_commands_are_run_by_tests_of_their_own(file: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()
