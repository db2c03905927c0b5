"""The exported page shows what the server's page shows, from the disk and from a plain web host."""

from __future__ import annotations

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Opened, most_frequent
from sae.base.files import check_folder
from sae.browser.bundle import BundleError, bundle
from sae.browser.export import export_static
from sae.config import ConfigError
from sae.features.store.store import FeatureStore

# parts that must read the same wherever the page comes from
PARTS = ("latent-name", "fact-density", "fact-entropy", "zero-mass", "band-top", "logits-top", "neighbours", "coactive")


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "page"
    report = export_static(run, out)
    assert report["latents"] == 128
    return out


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A web host that answers range requests, as most do and Python's own does not."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(f"{self.path} {wanted or ''}".strip())
        if not wanted:
            super().do_GET()
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        body = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Plain(_Ranges):
    """A web host that ignores ranges."""

    def do_GET(self) -> None:
        del self.headers["Range"]
        super().do_GET()


@pytest.fixture(params=[_Ranges, _Plain])
def hosted(request: pytest.FixtureRequest, exported: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = partial(type("Handler", (request.param,), {"asked": asked}), directory=str(exported))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html", asked
        server.shutdown()


def texts(page: Page) -> dict[str, str]:
    """What the parts of a latent say, once all are there."""
    expect(page.get_by_test_id("coactive").get_by_test_id("latent-link").first).to_be_visible()
    expect(page.get_by_test_id("neighbours").get_by_test_id("latent-link").first).to_be_visible()
    expect(page.get_by_test_id("logits-top")).to_be_visible()
    page.get_by_test_id("band-top").get_by_test_id("show-all").click()
    # what invites to brush stands in both; the colours of tokens are part of what is shown
    found = {part: page.get_by_test_id(part).inner_text() for part in PARTS}
    found["colours"] = " ".join(t.get_attribute("class") or "" for t in page.locator(".examples .tok").all()[:200])
    return found


def test_the_static_page_renders_as_the_server_does(opened: Opened, address: str, exported: Path, run: Path) -> None:
    state = f"#/latents/{most_frequent(run)}?sort=-density"
    # one run alone, as in the export
    live = texts(opened(address + state))
    assert texts(opened(f"file://{exported}/index.html{state}")) == live


def test_a_web_host_serves_the_page(
    opened: Opened, address: str, hosted: tuple[str, list[str]], run: Path, request: pytest.FixtureRequest
) -> None:
    url, asked = hosted
    state = f"#/latents/{most_frequent(run)}"
    assert texts(opened(url + state)) == texts(opened(address + state))
    ranges = [path for path in asked if "records.bin bytes=" in path]
    shards = [path for path in asked if "shard-" in path]
    if "Ranges" in request.node.name:
        assert ranges
        assert not shards
    else:
        assert shards


def test_the_static_table_sorts_filters_and_searches_as_the_server(
    opened: Opened, address: str, exported: Path
) -> None:
    pages = [opened(address), opened(f"file://{exported}/index.html")]
    states = [
        "sort=-entropy",
        "sort=name",
        "sort=-name",
        "sort=score&filter=max:2..4",
        "text=t&sort=-max",
        "mark=named",
    ]
    for state in states:
        seen = []
        for page in pages:
            page.evaluate("state => { location.hash = state; }", f"#/latents?view=table&{state}")
            page.wait_for_timeout(500)
            seen.append((page.get_by_test_id("live-count").inner_text(), page.get_by_test_id("row").all_inner_texts()))
        assert seen[0] == seen[1], state
    static = pages[1]
    static.evaluate("location.hash = '#/search?q=WATER'")
    expect(static.get_by_test_id("search-hit").first).to_contain_text("words of water")
    static.get_by_test_id("tab-run").click()
    expect(static.get_by_test_id("curve").first.locator("canvas")).to_be_visible()
    expect(static.get_by_test_id("evaluation")).to_contain_text("FVU")
    # what needs a server is not offered
    for name in ("tab-prompt", "tab-steer", "bookmark", "export"):
        expect(static.get_by_test_id(name)).to_have_count(0)


def test_a_downloaded_selection_opens_from_the_disk(opened: Opened, address: str, tmp_path: Path) -> None:
    page = opened(address + "#/latents?filter=count:1..,latent:0..9")
    page.get_by_test_id("latent").wait_for()
    kept = page.get_by_test_id("row").all_inner_texts()
    page.get_by_test_id("export").click()
    with page.expect_download() as download:
        page.get_by_test_id("export-static").click()
    zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).extractall(tmp_path / "page")
    check_folder(tmp_path / "page")
    offline = opened(f"file://{tmp_path}/page/index.html")
    offline.get_by_test_id("latent").wait_for()
    assert offline.get_by_test_id("row").all_inner_texts() == kept
    # a link to what was left out says so
    offline.evaluate("location.hash = '#/latents/127'")
    expect(offline.get_by_test_id("error")).to_contain_text("not part of this export")


def test_an_export_is_whole_the_same_twice_and_tells_nothing_of_the_machine(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    check_folder(exported)
    again = tmp_path / "again"
    export_static(run, again)
    names = {p.relative_to(exported) for p in exported.rglob("*") if p.is_file()}
    assert names == {p.relative_to(again) for p in again.rglob("*") if p.is_file()}
    for name in names:
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name
    assert (exported / "static/vendor/LICENSE.preact").exists()
    assert str(run).encode() not in (exported / "data/index.js").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        export_static(run, exported)
    with pytest.raises(ConfigError, match="latent 128"):
        export_static(run, tmp_path / "other", latents=[128])
    assert not (tmp_path / "other").exists()
    assert FeatureStore(run).width == 128


def test_modules_in_an_unknown_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text('import * as b from "./b.js";\n')
    with pytest.raises(BundleError, match=r"a\.js: cannot join"):
        bundle(tmp_path / "a.js")
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = 1;\n')
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = 1;\n')
    with pytest.raises(BundleError, match="imports itself"):
        bundle(tmp_path / "a.js")
