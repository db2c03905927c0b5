"""Other tools' files where a command expects a run: they are imported into the cache, and the command gets that run."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae.cli.commands import Browse, Eval, Explain, Export, Features, Steer, Verify
from sae.cli.reporting import Report

NAMES: dict[type, str] = {
    Eval: "eval",
    Features: "features",
    Explain: "explain",
    Steer: "steer",
    Browse: "browse",
    Report: "report",
    Export: "export",
    Verify: "verify",
}
"""Command that reads a run -> its name."""
SHOWN = ("static", "neuronpedia")
"""What `sae export` writes from collected features."""


def on_runs(command: Any) -> Any:
    """The command, with run folders in place of other tools' files; any other command as it is.

    Raises:
        ConfigError: a run is needed and the files do not say enough; the message has the command that makes one.
    """
    if type(command) not in NAMES:
        return command
    from sae.interop.opening import as_run

    name = NAMES[type(command)]
    if isinstance(command, Browse | Report):
        return dataclasses.replace(command, run_folders=tuple(as_run(run, command=name) for run in command.run_folders))
    with_text = not (isinstance(command, Verify) or (isinstance(command, Export) and command.to not in SHOWN))
    text = {}
    if isinstance(command, Eval | Features):
        config = command.config
        text = {"dataset": config.dataset, "text_field": config.text_field, "device": config.device}
    folder = as_run(command.run_folder, command=name, with_text=with_text, **text)
    return dataclasses.replace(command, run_folder=type(command.run_folder)(folder))
