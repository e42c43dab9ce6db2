"""Screenshots of every explorer page, light and dark, for the documentation.

    python scripts/screenshots.py INDEX [INDEX ...] --out docs/images

Needs Debian's chromium and the `dev` extra; CPU only; about half a minute for each index. The files are named after the
kind of the index, the page and the theme, for example `text-feature-dark.png`. Look at them before committing them.
"""

import argparse
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from saekit.index import FeatureIndex
from saekit.jobs.explore import ExploreConfig, explorer
from saekit_explorer.overview_data import starters

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'
TEXT = "The central bank raised interest rates again on Thursday, and England won the match at Twickenham."


def pages_of(index: FeatureIndex, feature: int | None) -> dict[str, str]:
    """The addresses to take pictures of, by name."""
    shown = int(starters(index, n=1)[0]) if feature is None else feature
    live = f"input?text={quote(TEXT)}&at=2" if index.kind == "text" else f"input?example={index.n_examples // 3}"
    pages = {"overview": "", "features": "features", "feature": f"feature?feature={shown}", "input": live}
    return {**pages, "compare": "compare", "run": "run"}


def take(page: Page, url: str, path: Path) -> None:
    """Open `url`, wait until the page and its pictures are there, and keep what the window shows."""
    page.goto(url)
    page.wait_for_selector(SETTLED, timeout=180_000)
    page.wait_for_selector(".sk > *", timeout=180_000)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    page.screenshot(path=str(path))
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("indexes", type=Path, nargs="+", metavar="INDEX")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--feature", type=int, help="feature to show; by default the most promising one")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=900)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.indexes:
        index = FeatureIndex.open(path)
        config = ExploreConfig(index=path, port=0, open_browser=False)
        with explorer(config) as (url, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    color_scheme=scheme, viewport={"width": options.width, "height": options.height}
                )
                for name, address in pages_of(index, options.feature).items():
                    take(context.new_page(), f"{url}/{address}", options.out / f"{index.kind}-{name}-{scheme}.png")
                context.close()
            browser.close()


if __name__ == "__main__":
    main()
