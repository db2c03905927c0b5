"""The chapter as one page: experiments run one by one, and each is saved as soon as it is done.

    result = run_chapter(Setting(out=Path("runs/chapter"), data="mnist5k"), only=("linear_is_pca",))

`out` holds chapter.html, findings.json, a folder of every finished experiment in `experiments`, and the runs that
they trained in `runs`. The same call resumes where the last one ended.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sae.book.chapter.all  # noqa: F401  registers the experiments
from sae.base.files import check_folder, publish_file, publish_folder, publish_json, read_json
from sae.base.progress import Interrupted
from sae.book.chapter.base import EXPERIMENTS, Finding, Setting, locked_folder, training_data
from sae.config import ConfigError, ImageDataConfig, unknown_choice
from sae.evaluation.bootstrap import plain
from sae.pictures.page import Page

PAGE, FINDINGS = "chapter.html", "findings.json"
FINDING, SECTION = "finding.json", "section.html"
FORMAT = 2  # of saved experiments; raise it when a measure changes


def run_chapter(setting: Setting, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the experiments that are not done yet, and write the page and findings.json anew.

    Args:
        setting: where, and at which size.
        only: names of experiments; all by default. The page shows those finished earlier as well.

    Returns:
        JSON values: a row for every experiment asked for, and the exit status, 1 if one failed.

    Raises:
        ConfigError: an unknown name, a folder that cannot be used, or no seed.
        Interrupted: SIGINT or SIGTERM; finished experiments are kept.
    """
    for name in only:
        if name not in EXPERIMENTS:
            raise unknown_choice("--only", name, EXPERIMENTS)
    names = [name for name in in_order() if not only or name in only]
    if not setting.seeds:
        raise ConfigError("--seeds 0: expected at least 1")
    rows: list[dict[str, Any]] = []
    with locked_folder(setting.out):
        for number, name in enumerate(names, 1):
            setting.tell(f"[{number}/{len(names)}] {EXPERIMENTS[name].title}")
            rows.append(_run_one(setting, name))
            _write_page(setting)
    failed = [row["experiment"] for row in rows if row["state"] == "failed"]
    return {
        "experiments": rows,
        "page": str(setting.out / PAGE),
        "findings": str(setting.out / FINDINGS),
        "failed": ", ".join(failed) or None,
        "status": 1 if failed else 0,
    }


def in_order() -> list[str]:
    """Names of all experiments, by their rows in docs/images.md."""
    return sorted(EXPERIMENTS, key=lambda name: EXPERIMENTS[name].rows)


def _run_one(setting: Setting, name: str) -> dict[str, Any]:
    """A row of the result: done (now), kept (done earlier) or failed, with the reason."""
    begun = time.perf_counter()

    def row(state: str, reason: str | None = None) -> dict[str, Any]:
        seconds = None if state == "kept" else round(time.perf_counter() - begun, 1)
        rows = ", ".join(map(str, EXPERIMENTS[name].rows))
        return {"experiment": name, "rows": rows, "state": state, "seconds": seconds, "reason": reason}

    try:
        if _saved(setting, name) is not None:
            return row("kept")
        _save(setting, name, EXPERIMENTS[name].run(setting), begun)
    except Interrupted as stopped:
        hint = "the same command resumes; finished experiments and runs are kept"
        raise Interrupted(stopped.exit_status - 128, hint) from None
    except Exception as error:
        # the result and the page have the reason; the traceback is for whoever fixes it
        setting.tell(f"{name} failed:\n{traceback.format_exc()}")
        return row("failed", f"{type(error).__name__}: {error}")
    return row("done")


def _folder(setting: Setting, name: str) -> Path:
    return setting.out / "experiments" / name


def _inputs(setting: Setting) -> dict[str, Any]:
    """What a saved experiment must have been run with."""
    return {
        "format": FORMAT,
        "data": training_data(ImageDataConfig(data=setting.data)),
        "seeds": list(setting.seeds),
        "quick": setting.quick,
    }


def _saved(setting: Setting, name: str) -> dict[str, Any] | None:
    """The finished experiment as JSON values; None if there is none, or one of another setting."""
    folder = _folder(setting, name)
    if not folder.exists():
        return None
    check_folder(folder)
    finding = read_json(folder / FINDING)
    return finding if finding["setting"] == _inputs(setting) else None


def _save(setting: Setting, name: str, finding: Finding, begun: float) -> None:
    _, rows, title, seeds = EXPERIMENTS[name]
    page = Page(title)
    if seeds:
        page.text(f"Seeds: {seeds}.")
    page.text(finding.text)
    for table in finding.tables:
        page.table(plain(table))
    for picture in finding.pictures:
        page.figure(*picture)
    record = {
        "experiment": name,
        "title": title,
        "rows": rows,
        "setting": _inputs(setting),
        "seconds": round(time.perf_counter() - begun, 1),
        "text": finding.text,
        "numbers": finding.numbers,
        "tables": finding.tables,
        "pictures": [picture.caption for picture in finding.pictures],
    }
    with publish_folder(_folder(setting, name)) as folder:
        publish_file(folder / SECTION, page.inner().encode())
        publish_json(folder / FINDING, plain(record))


def _write_page(setting: Setting) -> None:
    """Everything that is finished with this setting, in order."""
    about = f"{setting.data}, {len(setting.seeds)} seed{'s' if len(setting.seeds) > 1 else ''}"
    page = Page("Autoencoders and representation learning", about + (", quick" if setting.quick else ""))
    findings = {name: finding for name in in_order() if (finding := _saved(setting, name)) is not None}
    for name, finding in findings.items():
        page.section(finding["title"])
        page.insert((_folder(setting, name) / SECTION).read_text(encoding="utf-8"))
    publish_json(setting.out / FINDINGS, findings)
    page.write(setting.out / PAGE)
