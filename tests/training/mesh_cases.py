"""Training runs one after the other in the processes of one torchrun job; run as a script by `test_mesh.py`.

torchrun --nproc-per-node 2 mesh_cases.py cases.json       # {"name": <TrainConfig as JSON>, ...}
"""

from __future__ import annotations

import sys
from pathlib import Path

from sae.base.files import read_json
from sae.base.ranks import Ranks
from sae.config import TrainConfig, from_json
from sae.training.run import train


def main(cases: Path) -> None:
    with Ranks.of_process("cpu"):
        for name, values in read_json(cases).items():
            train(from_json(TrainConfig, values, name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
