"""Training runs one after the other in the processes of one torchrun job, for `test_mesh.py`.

main(Path("cases.json"))       # {"name": <TrainConfig as JSON>, ...}
"""

from __future__ import annotations

from pathlib import Path

from sae.base.files import read_json
from sae.base.ranks import Ranks
from sae.config import TrainConfig, from_json
from sae.training.run import train


def main(cases: Path) -> None:
    with Ranks.of_process("cpu"):
        for name, values in read_json(cases).items():
            train(from_json(TrainConfig, values, name))
