"""Hooks of mkdocs (see mkdocs.yml): README and CONTRIBUTING become pages, links to source files become file names.

Pages in docs/ link to files of the repository, which the site does not hold. Such a link is shown as the file's name; a
link to a file that does not exist stops the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""File of the repository -> page of the site."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(docs/([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        text = IMAGE.sub(r"![\1](\2)", rewritten((ROOT / source).read_text(), ROOT))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page in docs/."""
    if page.file.src_path in PAGES.values():
        return markdown
    return rewritten(markdown, DOCS / Path(page.file.src_path).parent)


def rewritten(markdown: str, folder: Path) -> str:
    """The links of a text that lies in `folder`, as the site needs them."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            raise PluginError(f"a link to {target} in {folder}: no such file")
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            return f"[{text}]({PAGES[name]}{anchor})"
        if path.is_relative_to(DOCS) and path.is_file():
            return f"[{text}]({path.relative_to(DOCS).as_posix()}{anchor})"
        # a text that names the file already needs no second name
        known = text.strip("`") in (name, path.name, target)
        return f"`{name}`" if known else f"{text} (`{name}`)"

    return LINK.sub(link, markdown)
