"""Response times of the page: of its server over a store of 131k latents, and in headless Chromium.

    python scripts/bench/browse.py [--width 131072] [--store FOLDER] [--json]

Timed are whole HTTP answers on this machine: filter and sort of the list (each query new to the server, the first of a
column includes its sort), and one latent's record with all its examples. In Chromium: from the address to the first
latent drawn, and the frames while a table of a million rows (made up inside the page) is scrolled from end to end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from sae.base.tables import number
from sae.browser.app import STATIC, create_app
from sae.browser.listing import Listing, Marks, Query
from sae.browser.serve import listen
from sae.features.store.store import FeatureStore
from sae.features.store.writer import FIELDS

ROOT = Path(__file__).parents[2]
TOKEN = "bench"
COLUMNS = ("density", "max", "mean", "entropy", "norm", "cosine", "count")
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=131_072)
    parser.add_argument("--store", type=Path, help="folder with a store, made by tests/features/synthetic_store.py")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "store"
        if arguments.store is None:
            maker = ROOT / "tests/features/synthetic_store.py"
            command = [sys.executable, str(maker), str(folder), "--width", str(arguments.width)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = measure(folder)
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:36} {number(value)}")
    print(json.dumps(result))


def measure(folder: Path) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    width = FeatureStore(folder).width
    port, server = start(folder)
    result: dict[str, Any] = {"width": width, "page_bytes": page_bytes()}
    cookie = Client(port).enter()
    client = Client(port, cookie)
    result |= time_lists(client) | time_records(client, width) | time_million_rows()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-background-networking"]
        )
        result |= time_page(browser, port)
        browser.close()
    server.should_exit = True
    return result


def start(folder: Path) -> tuple[int, uvicorn.Server]:
    """A server in a thread of this process."""
    listener = listen(0)
    config = uvicorn.Config(create_app([folder], token=TOKEN, device="cpu"), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return listener.getsockname()[1], server


class Client:
    """Plain HTTP on one connection that stays open."""

    def __init__(self, port: int, cookie: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookie = cookie

    def enter(self) -> str:
        """The cookie that the token is exchanged for."""
        self.connection.request("GET", f"/?token={TOKEN}")
        answer = self.connection.getresponse()
        answer.read()
        return str(answer.getheader("set-cookie")).partition(";")[0]

    def timed(self, path: str) -> tuple[float, dict[str, Any]]:
        """Milliseconds until the whole answer is there, and the answer."""
        begun = time.perf_counter()
        self.connection.request("GET", path, headers={"Cookie": self.cookie})
        answer = self.connection.getresponse()
        body = answer.read()
        milliseconds = 1000 * (time.perf_counter() - begun)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:200]!r}")
        return milliseconds, json.loads(body)


def time_lists(client: Client) -> dict[str, float]:
    """New queries to the list, 100 rows each: the first of each column sorts it, later ones only filter."""
    client.timed("/api/runs/0/latents")
    first = [client.timed(f"/api/runs/0/latents?sort=-{name}&count=100")[0] for name in COLUMNS]
    later = []
    for step in range(40):
        column = COLUMNS[step % len(COLUMNS)]
        query = f"filter=max:{step / 20}..,entropy:..{6 + step / 40},count:1..&sort=-{column}&count=100"
        later.append(client.timed(f"/api/runs/0/latents?{query}")[0])
    words = [client.timed(f"/api/runs/0/latents?text={word}&count=100")[0] for word in ("river", "mil", "na", "on1")]
    return {
        "list_first_sort_median_ms": statistics.median(first),
        "list_filter_median_ms": statistics.median(later),
        "list_filter_max_ms": max(later),
        "list_text_first_ms": words[0],
        "list_text_median_ms": statistics.median(words[1:]),
    }


def time_records(client: Client, width: int) -> dict[str, float]:
    """Records of latents spread over the whole store, each asked for once."""
    latents = np.random.default_rng(0).choice(width, 100, replace=False).tolist()
    milliseconds = [client.timed(f"/api/runs/0/latents/{latent}")[0] for latent in latents]
    return {"record_median_ms": statistics.median(milliseconds), "record_p95_ms": sorted(milliseconds)[94]}


def time_million_rows() -> dict[str, float]:
    """Filter and sort of a million latents' scalars, without HTTP."""
    draw = np.random.default_rng(0)
    scalars = np.zeros(MILLION, FIELDS)
    for name in ("density", "max", "entropy"):
        scalars[name] = draw.random(MILLION)
    listing = Listing(scalars)
    milliseconds = []
    for step in range(12):
        begun = time.perf_counter()
        rows = listing.select(Query.parse(filter=f"max:{step / 20}..,entropy:..0.9", sort="-density"), Marks())
        [listing.row(i, Marks()) for i in rows[5000:5100].tolist()]
        milliseconds.append(1000 * (time.perf_counter() - begun))
    return {"million_first_sort_ms": milliseconds[0], "million_filter_median_ms": statistics.median(milliseconds[1:])}


SCROLL = """async (rows) => {
  const { html, render } = await import("/static/view.js");
  const { COLUMNS, Rows, Table } = await import("/static/table.js");
  const made = (i) => ({ latent: i, density: 1 / (i + 2), max: i % 17, mean: 1, entropy: 2, norm: 1, cosine: 0.5,
                         score: null, token: " word", count: 1 });
  const source = { window: async (run, query, start, count) => ({ total: rows, of: rows, found: null,
    rows: Array.from({ length: Math.min(count, rows - start) }, (_, k) => made(start + k)) }) };
  const place = document.createElement("div");
  place.setAttribute("class", "list");
  place.style.cssText = "position: fixed; inset: 0; z-index: 99";
  document.body.append(place);
  let list;
  const parts = { columns: COLUMNS, sort: "latent", place: null, onOpen: () => {} };
  const draw = () => render(html`<${Table} rows=${list} ...${parts} />`, place);
  list = new Rows(source, 0, {}, draw);
  await list.load(0);
  draw();
  const frame = place.querySelector("[data-testid=table-frame]");
  const tick = () => new Promise(requestAnimationFrame);
  const milliseconds = [];
  let last = (await tick(), await tick());
  for (let i = 0; i <= 240; i++) {
    frame.scrollTop = ((frame.scrollHeight - frame.clientHeight) * i) / 240;
    const now = await tick();
    milliseconds.push(now - last);
    last = now;
  }
  await new Promise((resolve) => setTimeout(resolve, 300));
  const shown = [...place.querySelectorAll("[data-testid=row]")].map((row) => Number(row.dataset.latent));
  return { milliseconds, last: Math.max(...shown), elements: place.querySelectorAll("*").length };
}"""


def time_page(browser: Browser, port: int) -> dict[str, float]:
    """The first latent drawn (a fresh profile each time), and the frames of a long scroll."""
    drawn = []
    for _ in range(5):
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        begun = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}", wait_until="commit")
        page.get_by_test_id("example").first.wait_for()
        drawn.append(1000 * (time.perf_counter() - begun))
        page.context.close()
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
    page.get_by_test_id("example").first.wait_for()
    scrolled = page.evaluate(SCROLL, MILLION)
    if scrolled["last"] != MILLION - 1:
        raise SystemExit(f"the table ended with row {scrolled['last']:,}")
    frames = sorted(scrolled["milliseconds"])
    return {
        "first_latent_drawn_median_ms": statistics.median(drawn),
        "first_latent_drawn_max_ms": max(drawn),
        "scroll_frame_median_ms": statistics.median(frames),
        "scroll_frame_p95_ms": frames[int(len(frames) * 0.95)],
        "table_elements": scrolled["elements"],
    }


def page_bytes() -> int:
    """Bytes of the whole page, libraries included."""
    return sum(path.stat().st_size for path in STATIC.rglob("*") if path.suffix in (".html", ".css", ".js"))


if __name__ == "__main__":
    main()
