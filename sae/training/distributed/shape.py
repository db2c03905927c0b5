"""How the processes of a job are arranged: --mesh DATAxLATENT."""

from __future__ import annotations

from typing import NamedTuple

from sae.config import ConfigError


class Shape(NamedTuple):
    """Ranks along both axes."""

    data: int
    latent: int

    @classmethod
    def of(cls, text: str | None, world: int) -> Shape:
        """--mesh as the user wrote it; by default all ranks along data.

        Raises:
            ConfigError: it is not DATAxLATENT, or not for this number of processes.
        """
        if text is None:
            return cls(world, 1)
        parts = text.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
            raise ConfigError(f"--mesh {text}: expected DATAxLATENT, such as {world}x1 or 1x{world}")
        shape = cls(int(parts[0]), int(parts[1]))
        if shape.data * shape.latent != world:
            raise ConfigError(
                f"--mesh {text}: is for {shape.data * shape.latent} processes, and this job has {world}; start it by: "
                f"torchrun --nproc-per-node {shape.data * shape.latent} -m sae train ..."
            )
        return shape

    def __str__(self) -> str:
        return f"{self.data}x{self.latent}"
