"""The chapter as one page: experiments run one by one, each kept as soon as it is done, whatever becomes of the rest.

    found = run_chapter(Setting(out=Path("runs/chapter"), data="mnist5k"), only=("linear_is_pca",))

`out` holds chapter.html, findings.json, a folder of every finished experiment in `experiments`, and the runs that
they trained in `runs`. The same call again goes on where the last one ended.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sae.book.chapter.all  # noqa: F401  makes the experiments known
from sae.base.files import check_folder, publish_file, publish_folder, publish_json, read_json
from sae.base.progress import Interrupted
from sae.book.chapter.base import EXPERIMENTS, Experiment, Finding, Setting, training_data
from sae.book.chapter.measure import plain
from sae.book.pictures.page import Page
from sae.config import ConfigError, ImageDataConfig, unknown_choice
from sae.training.run_folder import run_lock

PAGE, FINDINGS = "chapter.html", "findings.json"
FINDING, SECTION = "finding.json", "section.html"
FORMAT = 2  # of what is kept of an experiment; a change of any measure raises it


class ChapterPage(Page):
    """A page some of whose sections were written earlier."""

    def inner(self) -> str:
        """What follows the heading and the list of contents."""
        return "".join(self._parts)

    def kept_section(self, title: str, inner: str) -> None:
        """A section with what another page's `inner` gave."""
        self.section(title)
        self._parts.append(inner)


def run_chapter(setting: Setting, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the experiments that are not done yet, and write the page and findings.json anew.

    Args:
        setting: where and how large.
        only: names of experiments; all by default. The page shows those that were finished earlier as well.

    Returns:
        JSON values: a row for every experiment asked for, and the exit status, 1 if one failed.

    Raises:
        ConfigError: an unknown name, a folder that cannot be used, or no seed.
        Interrupted: SIGINT or SIGTERM; what is finished is kept.
    """
    chosen = _chosen(only)
    if not setting.seeds:
        raise ConfigError("--seeds 0: expected at least 1")
    if setting.out.exists() and not setting.out.is_dir():
        raise ConfigError(f"--out {setting.out}: is a file; expected a folder")
    setting.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with run_lock(setting.out):
        for number, name in enumerate(chosen, 1):
            setting.tell(f"[{number}/{len(chosen)}] {EXPERIMENTS[name].title}")
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


def _chosen(only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in EXPERIMENTS:
            raise unknown_choice("--only", name, EXPERIMENTS)
    return [name for name in in_order() if not only or name in only]


def in_order() -> list[str]:
    """Names of all experiments, by their rows in docs/images.md."""
    return sorted(EXPERIMENTS, key=lambda name: EXPERIMENTS[name].rows)


def _run_one(setting: Setting, name: str) -> dict[str, Any]:
    """A row of the result: done (now), kept (done earlier) or failed, with the reason."""
    row = {"experiment": name, "rows": ", ".join(map(str, EXPERIMENTS[name].rows))}
    begun = time.perf_counter()
    try:
        if _kept(setting, name) is not None:
            return {**row, "state": "kept", "seconds": None, "reason": None}
        finding = EXPERIMENTS[name].run(setting)
        _keep(setting, name, finding, time.perf_counter() - begun)
    except Interrupted as stopped:
        again = "the same command goes on; finished experiments and runs are kept"
        raise Interrupted(stopped.exit_status - 128, again) from None
    except Exception as error:
        # the reason stands in the result and the page; the way there is for whoever mends it
        setting.tell(f"{name} failed:\n{traceback.format_exc()}")
        seconds = round(time.perf_counter() - begun, 1)
        return {**row, "state": "failed", "seconds": seconds, "reason": f"{type(error).__name__}: {error}"}
    return {**row, "state": "done", "seconds": round(time.perf_counter() - begun, 1), "reason": None}


def _folder(setting: Setting, name: str) -> Path:
    return setting.out / "experiments" / name


def _asked(setting: Setting) -> dict[str, Any]:
    """What a kept experiment must have been run with."""
    return {
        "format": FORMAT,
        "data": training_data(ImageDataConfig(data=setting.data)),
        "seeds": list(setting.seeds),
        "quick": setting.quick,
    }


def _kept(setting: Setting, name: str) -> dict[str, Any] | None:
    """The finished experiment as JSON values; None where there is none, or one of another setting."""
    folder = _folder(setting, name)
    if not folder.exists():
        return None
    check_folder(folder)
    found = read_json(folder / FINDING)
    return found if found["setting"] == _asked(setting) else None


def _keep(setting: Setting, name: str, finding: Finding, seconds: float) -> None:
    record = EXPERIMENTS[name]
    page = ChapterPage(record.title)
    if record.seeds:
        page.text(f"Seeds: {record.seeds}.")
    page.text(finding.text)
    for table in finding.tables:
        page.table(plain(table))
    for picture in finding.pictures:
        page.figure(picture.figure, picture.caption, vector=picture.vector)
    with publish_folder(_folder(setting, name)) as folder:
        publish_file(folder / SECTION, page.inner().encode())
        publish_json(folder / FINDING, {**_head(setting, name, record, seconds), **_values(finding)})


def _head(setting: Setting, name: str, record: Experiment, seconds: float) -> dict[str, Any]:
    head = {"experiment": name, "title": record.title, "rows": list(record.rows), "setting": _asked(setting)}
    return {**head, "seconds": round(seconds, 1)}


def _values(finding: Finding) -> dict[str, Any]:
    captions = [picture.caption for picture in finding.pictures]
    return plain({"text": finding.text, "numbers": finding.numbers, "tables": finding.tables, "pictures": captions})


def _write_page(setting: Setting) -> None:
    """Everything that is finished with this setting, in order."""
    about = f"{setting.data}, {len(setting.seeds)} seed{'s' if len(setting.seeds) > 1 else ''}"
    page = ChapterPage("Autoencoders and representation learning", about + (", quick" if setting.quick else ""))
    findings = {name: found for name in in_order() if (found := _kept(setting, name)) is not None}
    for name, found in findings.items():
        page.kept_section(found["title"], (_folder(setting, name) / SECTION).read_text(encoding="utf-8"))
    publish_json(setting.out / FINDINGS, findings)
    page.write(setting.out / PAGE)
