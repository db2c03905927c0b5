"""What SAEBench's own functions make of small arrays, for tests/evaluation/test_saebench_measures.py.

    .venv-saebench/bin/python scripts/interop/saebench_measures.py tests/evaluation/saebench.npz

Choice of latents and accuracy of sparse probing, effects, ablations and scores of SCR and TPP, absorption. Runs in an
environment with sae-bench 0.6.0 and without this package (`make .venv-saebench/.installed`).
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import torch
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.scr_and_tpp import main as removal
from sae_bench.evals.sparse_probing import probe_training as probing

DIM, WIDTH, TOKENS, TEXTS = 8, 24, 3, 40


class Toy(torch.nn.Module):
    """What SAEBench asks of an SAE: ReLU codes, unit atoms, a bias."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.W_enc = torch.nn.Parameter(torch.randn(DIM, WIDTH))
        self.W_dec = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(WIDTH, DIM), dim=1))
        self.b = torch.nn.Parameter(torch.randn(DIM) * 0.1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.W_enc - 1).relu()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.W_dec + self.b


def probe() -> probing.Probe:
    return probing.Probe(DIM, torch.float32)


@torch.no_grad()
def main(path: str) -> None:
    torch.manual_seed(0)
    toy = Toy()
    saved: dict[str, torch.Tensor | np.ndarray | float] = {"atoms": toy.W_dec}

    # sparse probing
    z = torch.randn(80, WIDTH).relu()
    y = torch.arange(80, dtype=torch.int) % 2
    z[y == 1, 5] += 1
    z[y == 1, 11] += 0.5
    saved |= {"probing.z": z, "probing.y": y}
    for k in (1, 2, 5, 16):
        kept = ~probing.get_top_k_mean_diff_mask(z[:40], y[:40], k)
        _, accuracy = probing.train_sklearn_probe(z[:40][:, kept], y[:40], z[40:][:, kept], y[40:])
        saved |= {f"probing.kept.{k}": kept, f"probing.accuracy.{k}": accuracy}

    # SCR: classes of (profession, gender), each [texts, tokens, d]
    shift, other = torch.randn(DIM), torch.randn(DIM)
    cells = {}
    for profession in (1, 0):
        for gender in (1, 0):
            cells[profession, gender] = torch.randn(TEXTS, TOKENS, DIM) + profession * shift + gender * 2 * other
    both = {
        "male / female": torch.cat([cells[1, 1], cells[0, 1]]),
        "female_data_only": torch.cat([cells[1, 0], cells[0, 0]]),
        "professor / nurse": torch.cat([cells[1, 1], cells[1, 0]]),
        "nurse_data_only": torch.cat([cells[0, 1], cells[0, 0]]),
        "male_professor / female_nurse": torch.cat([cells[1, 1], cells[1, 1]]),
        "female_nurse_data_only": torch.cat([cells[0, 0], cells[0, 0]]),
    }
    names = ["male / female", "professor / nurse", "male_professor / female_nurse"]
    probes = {name: probe() for name in names}
    for name, of in zip(names, (other, shift, shift + 2 * other), strict=True):
        probes[name].net.weight.copy_(of[None] + 0.2 * torch.randn(1, DIM))
        probes[name].net.bias.fill_(-float(of @ of) / 2)
    pooled = {name: acts.mean(1) for name, acts in both.items()}
    clean = removal.get_probe_test_accuracy(probes, names, pooled, 64, True)
    effects = removal.get_all_node_effects_for_one_sae(toy, probes, names, True, both, 16)
    after = removal.perform_feature_ablations(probes, toy, 16, both, effects, [2, 5], names, 64, True)
    scores = removal.get_scr_plotting_dict(after, clean)
    for (profession, gender), acts in cells.items():
        saved[f"scr.x.{profession}{gender}"] = acts
        saved[f"scr.z.{profession}{gender}"] = toy.encode(acts)
    for name, short in zip(names, ("gender", "profession", "both"), strict=True):
        saved |= {f"scr.{short}.direction": probes[name].net.weight[0], f"scr.{short}.offset": probes[name].net.bias}
        saved[f"scr.{short}.effects"] = effects[name]
    for k in (2, 5):
        kept = removal.select_top_n_features(effects["male / female"], k, "")
        saved |= {
            f"scr.kept.{k}": kept,
            f"scr.ablated.{k}": removal.ablated_precomputed_activations(cells[1, 1], toy, kept, 16),
        }
        saved |= {f"scr.dir{way}.{k}": scores[f"scr_dir{way}_threshold_{k}"] for way in (1, 2)}

    # TPP: effects between two classes, where no text is drawn, and the score of four classes' accuracies
    classes = {"a": cells[1, 1], "b": cells[0, 0]}
    saved["tpp.effects"] = removal.get_effects_per_class_precomputed_acts(
        toy, probes["male / female"], "a", classes, False, 16
    )
    before, behind = torch.rand(4), torch.rand(4, 4)
    labels = list("abcd")
    overall, _ = removal.create_tpp_plotting_dict(
        {i: {2: {j: behind[a, b].item() for b, j in enumerate(labels)}} for a, i in enumerate(labels)},
        {j: before[b].item() for b, j in enumerate(labels)},
    )
    saved |= {"tpp.clean": before, "tpp.after": behind}
    saved |= {f"tpp.{name}": overall[f"tpp_threshold_2_{key}"] for name, key in TPP.items()}

    # absorption
    words = torch.randn(120, DIM) + 0.7
    direction = torch.randn(DIM)
    calculator = FeatureAbsorptionCalculator(
        model=Reader(words), icl_word_list=["word"], batch_size=120, word_token_pos=-1
    )
    calculator._build_prompts = lambda names: [SimpleNamespace(word=name, base=name) for name in names]
    saved |= {"absorption.x": words, "absorption.z": toy.encode(words), "absorption.direction": direction}
    for number, main_latents in enumerate(([3], [0, 7])):
        results = calculator.calculate_absorption(
            toy, [str(i) for i in range(len(words))], direction, main_latents, 0, show_progress=False
        ).word_results
        saved |= {
            f"absorption.main.{number}": np.array(main_latents),
            f"absorption.fraction.{number}": np.array([word.absorption_fraction for word in results]),
            f"absorption.full.{number}": np.array([word.is_full_absorption for word in results]),
        }
    arrays = {name: np.asarray(value.detach() if torch.is_tensor(value) else value) for name, value in saved.items()}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays")


TPP = {"score": "total_metric", "intended": "intended_diff_only", "others": "unintended_diff_only"}


class Reader:
    """A model that has made its activations already."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def to_tokens(self, text: str) -> torch.Tensor:
        return torch.zeros(1, 1)

    def run_with_cache(self, texts: list[str], names_filter: list[str]) -> tuple[None, dict[str, torch.Tensor]]:
        return None, {names_filter[0]: self.rows[:, None]}


if __name__ == "__main__":
    main(sys.argv[1])
