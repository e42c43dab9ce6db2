"""What switching to another feature costs: time from click to drawn page, bytes received, and the server's share.

    python scripts/bench_explorer.py INDEX [-n 30]

Needs Debian's chromium and the `dev` extra; CPU only; half a minute. Expected on two idle cores with an index of 6,144
features: 0.2 s from click to drawn page at the median, 130 kB received, 15 ms of them spent in the index. Choices
inside the examples (context, threshold, band) cost no wait: the last line shows how long the browser takes to redraw.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from playwright.sync_api import Page, WebSocket, sync_playwright

from saekit.index import FeatureIndex
from saekit.jobs.explore import ExploreConfig, explorer
from saekit_explorer import widgets
from saekit_explorer.browse import Browse, list_features

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'


class Traffic:
    """Bytes that a page receives over its web sockets."""

    def __init__(self, page: Page) -> None:
        self.n_bytes = 0
        page.on("websocket", self._watch)

    def _watch(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda payload: self._add(payload))

    def _add(self, payload: str | bytes) -> None:
        self.n_bytes += len(payload)


def payload_seconds(index: FeatureIndex, features: list[int]) -> list[float]:
    """Seconds to make everything that a feature's page is sent, without Streamlit and its caches."""
    times = []
    for feature in features:
        start = time.perf_counter()
        json.dumps(widgets.examples(index, feature))
        json.dumps(widgets.side(index, feature))
        times.append(time.perf_counter() - start)
    return times


def line(name: str, values: list[float], unit: str) -> str:
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{name:<34} median {statistics.median(values):8.1f} {unit}   95% {high:8.1f} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("-n", type=int, default=30, help="switches to measure")
    options = parser.parse_args()
    index = FeatureIndex.open(options.index)
    listed = list_features(index, Browse()).features[: options.n + 1].tolist()
    made = payload_seconds(index, listed)
    config = ExploreConfig(index=options.index, port=0, open_browser=False)
    with explorer(config) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        traffic = Traffic(page)
        start = time.perf_counter()
        page.goto(f"{url}/feature?feature={listed[0]}")
        page.wait_for_selector("ol li")
        page.wait_for_selector(SETTLED)
        print(f"{index!r}\nfirst page: {time.perf_counter() - start:.2f} s, {traffic.n_bytes / 1e3:.0f} kB")
        seconds, n_bytes = [], []
        for feature in listed[1:]:
            before = traffic.n_bytes
            start = time.perf_counter()
            page.get_by_role("link", name="Next →").click()
            page.get_by_role("heading", name=f"Feature {feature}", exact=True).wait_for()
            # The examples are drawn last: they are the largest message.
            page.wait_for_function(
                "f => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === f", arg="notRunning"
            )
            seconds.append(time.perf_counter() - start)
            n_bytes.append(traffic.n_bytes - before)
        redraws = []
        for width in ("8", "64", "all", "16") * 5:
            choice = page.locator(f"input[name=context][value='{width}']")
            if choice.count() == 0:
                break
            redraws.append(
                choice.evaluate("e => { const t = performance.now(); e.click(); return performance.now() - t; }")
            )
        browser.close()
    print(line("click to drawn page", [1e3 * value for value in seconds], "ms"))
    print(line("received over the socket", [value / 1e3 for value in n_bytes], "kB"))
    print(line("of which in the index", [1e3 * value for value in made], "ms"))
    if redraws:
        print(line("redraw with another context width", redraws, "ms"))


if __name__ == "__main__":
    main()
