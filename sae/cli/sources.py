"""Other tools' files where a command expects a run: they are imported into the cache, and the command gets that run."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae.cli.choose_l0 import ChooseL0
from sae.cli.commands import Browse, Eval, Explain, Features, Steer, Verify
from sae.cli.comparing import Compare
from sae.cli.exchange import Export
from sae.cli.match import Match
from sae.cli.measure import Measure
from sae.cli.reporting import Report
from sae.cli.steering import SteerMeasure
from sae.config import ConfigError

NAMES: dict[type, str] = {
    Eval: "eval",
    Match: "match",
    Compare: "compare",
    Measure: "measure",
    ChooseL0: "choose-l0",
    Features: "features",
    Explain: "explain",
    Steer: "steer",
    SteerMeasure: "steer",
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
    from sae.runs.sweeps import refuse_sweep, sweep_of

    name = NAMES[type(command)]
    if isinstance(command, Browse | ChooseL0 | Report):
        runs = [member for run in command.run_folders for member in members_of(run, command)]
        return dataclasses.replace(command, run_folders=tuple(as_run(run, command=name) for run in runs))
    if isinstance(command, Compare):
        # the members of a sweep are ours
        folders = tuple(r if sweep_of(r) is not None else str(as_run(r, command=name)) for r in command.run_folders)
        return dataclasses.replace(command, run_folders=folders)
    if isinstance(command, Match):
        # atoms need no text
        texts = {"dataset": command.config.dataset, "text_field": command.config.text_field}
        settings = {**texts, "with_text": texts["dataset"] is not None, "device": command.config.device}
        folders = tuple(as_run(run, command=name, **settings) for run in command.run_folders)
        return dataclasses.replace(command, run_folders=folders)
    if isinstance(command, Eval) and sweep_of(command.run_folder) is not None:
        return command
    refuse_sweep(command.run_folder, name)
    with_text = not (isinstance(command, Verify) or (isinstance(command, Export) and command.to not in SHOWN))
    text = {}
    if isinstance(command, Eval | Features):
        config = command.config
        text = {"dataset": config.dataset, "text_field": config.text_field, "device": config.device}
    folder = as_run(command.run_folder, command=name, with_text=with_text, **text)
    return dataclasses.replace(command, run_folder=type(command.run_folder)(folder))


def members_of(run: str, command: Browse | ChooseL0 | Report) -> list[str]:
    """The run itself or, of a sweep, the members that the command can show.

    Raises:
        ConfigError: there is none yet; the message has the command that helps.
    """
    from sae.features.store.writer import STORE
    from sae.models.saved import WEIGHTS
    from sae.runs.sweeps import sweep_of

    sweep = sweep_of(run)
    if sweep is None:
        return [run]
    needed = STORE if isinstance(command, Browse) else WEIGHTS
    members = [str(member) for member in sweep.members if (member / needed).is_file()]
    if not members and needed == STORE:
        raise ConfigError(f"{run}: no member of this sweep has features; collect them: sae features {sweep.members[0]}")
    if not members:
        raise ConfigError(f"{run}: no member of this sweep is finished; run the same sae sweep again")
    return members
