"""A person's visit to the explorer, in a real Chromium. Screenshots of every page stay under artifacts/explorer/."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorer_index import make_live_index
from indexes import BANK
from test_explorer_compare import metrics

from saekit.index import FeatureIndex
from saekit.jobs.explore import ExploreConfig, explorer

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not installed (apt-get install chromium)"),
]

ARTIFACTS = Path(__file__).parents[2] / "artifacts" / "explorer"
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Streamlit looks for its server under the page's own address first; on a page that is not the first this is a 404.
PROBES = re.compile(r"/(features|feature|input|compare|run)/_stcore/(health|host-config)$")
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'


class Visit:
    """One browser tab on one explorer, and what its console complained about."""

    def __init__(self, page: "playwright_api.Page", url: str) -> None:
        self.page, self.url = page, url
        # The first live pass imports torch; a machine that does other things meanwhile is slow, not wrong.
        page.set_default_timeout(120_000)
        self.complaints: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def go(self, path: str = "") -> None:
        self.page.goto(f"{self.url}/{path}")
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector(SETTLED)

    def wait_for_address(self, pattern: str) -> None:
        self.page.wait_for_url(re.compile(pattern))
        self.settle()

    def keep(self, name: str) -> None:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(ARTIFACTS / f"{name}.png"), full_page=True)

    def _listen(self, message: "playwright_api.ConsoleMessage") -> None:
        if message.type == "error" and not PROBES.search(message.location.get("url", "")):
            self.complaints.append(message.text)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright_api.BrowserContext"]:
    playwright_api.expect.set_options(timeout=60_000)
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        # One context for all tests: Streamlit's scripts are read and compiled once.
        yield opened.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
        opened.close()


@pytest.fixture(scope="module", params=["text", "image"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Kind, URL and path of an index that is served."""
    folder = tmp_path_factory.mktemp("browser")
    path = make_live_index(folder / "index", request.param)
    runs = (metrics(folder / "small" / "run", 8, 0.3), metrics(folder / "large" / "run", 32, 0.1))
    with explorer(ExploreConfig(index=path, compare=runs, port=0, open_browser=False)) as (url, _):
        yield request.param, url, path


def open_visit(browser: "playwright_api.BrowserContext", url: str) -> Visit:
    return Visit(browser.new_page(), url)


def test_every_page_in_both_themes_without_a_complaint(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    kind, url, _ = served
    live = "input?text=The%20tide%20%3Cscript%3E%20goes" if kind == "text" else "input?example=3&live=true"
    pages = {
        "overview": "",
        "features": "features",
        "feature": f"feature?feature={BANK}",
        "input": live,
        "compare": "compare",
        "run": "run",
    }
    visit = open_visit(browser, url)
    for name, path in pages.items():
        visit.go(path)
        visit.page.wait_for_selector(".sk > *")
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            background = "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)"
            playwright_api.expect(visit.page.get_by_test_id("stApp")).to_have_css("background-color", background)
            visit.page.wait_for_timeout(200)
            visit.keep(f"{kind}-{name}-{scheme}")
        assert visit.page.locator("h1, h2").count() >= 1, f"{name} has no heading"
    assert visit.complaints == []
    visit.page.close()


def test_a_visit_from_search_to_note(browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]) -> None:
    kind, url, path = served
    visit = open_visit(browser, url)
    page = visit.page
    visit.go()
    page.get_by_role("link", name="Features", exact=True).first.click()
    visit.wait_for_address(r"/features")

    page.get_by_label("Search", exact=True).fill(" bank" if kind == "text" else "cat")
    page.keyboard.press("Enter")
    visit.wait_for_address(r"[?&]q=")
    rows = page.locator("tbody tr")
    playwright_api.expect(rows.first.locator("a").first).to_have_text(str(BANK))

    page.get_by_role("button", name="Max").click()
    visit.wait_for_address(r"sort=max")
    playwright_api.expect(page.locator("th[aria-sort]")).to_have_text("Max ↓")
    values = [float(cell) for cell in page.locator("tbody tr td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values, reverse=True)

    page.get_by_role("link", name=f"Feature {BANK}", exact=True).click()
    visit.wait_for_address(rf"/feature\?.*feature={BANK}")
    playwright_api.expect(page.get_by_role("heading", level=1)).to_have_text(f"Feature {BANK}")
    playwright_api.expect(page.get_by_label("Other features of this list")).to_contain_text(f"of {rows_of(path)}")

    if kind == "text":
        page.locator("mark").first.hover()
        playwright_api.expect(page.get_by_role("tooltip")).to_contain_text("␣bank")
        page.mouse.move(0, 0)
        page.locator("mark[tabindex='0']").first.focus()
        tip = page.get_by_role("tooltip").filter(visible=True)
        playwright_api.expect(tip).to_contain_text(re.compile(r"\d"))
    else:
        page.locator(".heat").first.hover()
        playwright_api.expect(page.get_by_role("tooltip").filter(visible=True)).to_contain_text("row")

    before = page.locator("ol li").first.inner_text()
    page.get_by_text("20–40%", exact=True).click()
    playwright_api.expect(page.locator("ol li").first).not_to_have_text(before)
    visit.wait_for_address(r"examples=q20")
    page.get_by_role("slider", name="Hide activations below").fill("30")
    visit.wait_for_address(r"threshold=30")

    note = "never of a river <script>alert(1)</script>"
    page.get_by_label("Note", exact=True).fill(note)
    page.get_by_label("Label", exact=True).fill("banks")
    page.keyboard.press("Tab")
    playwright_api.expect(page.locator("header .label")).to_have_text("banks")
    visit.settle()

    address = page.url
    page.reload()
    visit.settle()
    assert page.url == address
    playwright_api.expect(page.get_by_label("Note", exact=True)).to_have_value(note)
    playwright_api.expect(page.locator("input[name='examples']:checked")).to_have_value("q20")
    playwright_api.expect(page.locator("output")).to_have_text("30%")
    saved = FeatureIndex.open(path).annotations.get(BANK)
    assert (saved.label, saved.note) == ("banks", note)

    page.get_by_role("link", name="Next →").click()
    playwright_api.expect(page.get_by_role("heading", level=1)).not_to_have_text(f"Feature {BANK}")
    page.go_back()
    playwright_api.expect(page.get_by_role("heading", level=1)).to_have_text(f"Feature {BANK}")
    assert visit.complaints == []
    page.close()


def rows_of(path: Path) -> str:
    """How many features the search of `test_a_visit_from_search_to_note` finds, as the page writes it."""
    from saekit_explorer.browse import Browse, list_features

    index = FeatureIndex.open(path)
    q, by = (" bank", "token") if index.kind == "text" else ("cat", "class")
    return f"{len(list_features(index, Browse(q=q, by=by)).features):,}"


def test_a_prompt_or_an_image_leads_to_its_features(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    kind, url, _ = served
    visit = open_visit(browser, url)
    page = visit.page
    visit.go("input")
    if kind == "text":
        page.get_by_label("Text", exact=True).fill('The gull </style><script>alert("x")</script>')
        page.keyboard.press("Control+Enter")
        visit.wait_for_address(r"text=The")
        tokens = page.locator(".tok")
        playwright_api.expect(tokens.first).to_have_text("The")
        tokens.nth(1).click()
        visit.wait_for_address(r"at=1")
    else:
        page.locator(".gallery a").nth(2).click()
        visit.wait_for_address(r"example=\d")
        page.locator(".heat").click()
        visit.wait_for_address(r"at=\d")
    page.get_by_role("button", name="show").first.click()
    visit.wait_for_address(r"paint=\d")
    chosen = page.locator("table.features a").first
    number = chosen.inner_text()
    chosen.click()
    visit.wait_for_address(rf"/feature\?.*feature={number}")
    playwright_api.expect(page.get_by_role("heading", level=1)).to_have_text(f"Feature {number}")
    assert visit.complaints == []
    page.close()


def test_a_feature_of_an_input_is_changed_and_the_address_brings_it_back(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    kind, url, _ = served
    visit = open_visit(browser, url)
    page = visit.page
    visit.go("input?text=the%20cat%20%3Cb%3Esat" if kind == "text" else "input?example=3")
    page.get_by_role("button", name=re.compile("^change feature")).first.click()
    visit.wait_for_address(r"change=\d")
    shown = (
        page.locator(".movers caption").first if kind == "text" else page.get_by_text("colour: change of each patch")
    )
    playwright_api.expect(shown).to_be_visible()
    if kind == "text":
        token = page.locator(".words .tok").nth(1)
        token.focus()
        page.keyboard.press("Enter")
        playwright_api.expect(page.locator(".words .tok").nth(1)).to_have_attribute("aria-pressed", "true")
    page.get_by_text("At the chosen").click()
    playwright_api.expect(page.get_by_text(re.compile("^Choose a (token|patch) below first"))).to_be_visible()
    (page.locator(".tok").first if kind == "text" else page.locator(".heat").last).click()
    visit.wait_for_address(r"at=\d")
    playwright_api.expect(shown).to_be_visible()
    address = page.url
    page.reload()
    visit.settle()
    assert page.url == address
    playwright_api.expect(shown).to_be_visible()
    visit.keep(f"{kind}-change")
    assert visit.complaints == []
    page.close()


def test_the_model_is_steered_from_a_features_page(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    kind, url, _ = served
    visit = open_visit(browser, url)
    page = visit.page
    visit.go(f"feature?feature={BANK}")
    if kind == "image":
        assert page.get_by_text("Steer the model").count() == 0
        page.close()
        return
    page.get_by_text("Steer the model with this feature").click()
    visit.wait_for_address(r"steer=true")
    page.get_by_label("Prompt", exact=True).fill("the <i>cat</i>")
    page.keyboard.press("Enter")
    playwright_api.expect(
        page.get_by_role("region", name="Without").or_(page.locator("section[aria-label=With]"))
    ).to_have_count(2)
    playwright_api.expect(page.locator("section[aria-label=With] .written")).to_contain_text("the <i>cat</i>")
    visit.wait_for_address(r"prompt=the")
    page.reload()
    playwright_api.expect(page.locator("section[aria-label=With] .written")).to_contain_text("the <i>cat</i>")
    visit.keep("text-steer")
    assert page.locator(".written i").count() == 0
    assert visit.complaints == []
    page.close()


def test_dictionaries_are_compared_with_the_keyboard_alone(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    _, url, _ = served
    visit = open_visit(browser, url)
    page = visit.page
    visit.go("compare")
    playwright_api.expect(page.locator("svg.pareto")).to_have_attribute("aria-label", re.compile("FVU against L0 of 2"))
    page.locator("input[name=y]:checked").focus()
    page.keyboard.press("ArrowRight")
    visit.wait_for_address(r"y=\w")
    playwright_api.expect(page.locator("svg.pareto")).to_have_attribute("aria-label", re.compile("against L0"))
    page.locator("svg.pareto g[tabindex='0']").first.focus()
    tip = page.get_by_role("tooltip").filter(visible=True)
    playwright_api.expect(tip).to_contain_text("L0 8")
    address = page.url
    page.reload()
    visit.settle()
    assert page.url == address
    playwright_api.expect(page.locator("input[name=y]:checked")).not_to_have_value("fvu")
    assert visit.complaints == []
    page.close()


def test_markup_in_the_corpus_stays_text(
    browser: "playwright_api.BrowserContext", served: tuple[str, str, Path]
) -> None:
    kind, url, _ = served
    visit = open_visit(browser, url)
    visit.page.on("dialog", lambda dialog: visit.complaints.append(f"dialog: {dialog.message}"))
    visit.go(f"feature?feature={1 if kind == 'text' else 0}")
    shown = "<script>" if kind == "text" else "<b>in a field</b>"
    playwright_api.expect(visit.page.locator("ol").first).to_contain_text(shown)
    assert visit.page.locator("ol script, ol li b, ol style").count() == 0
    assert visit.complaints == []
    visit.page.close()


def test_the_server_gives_only_its_index_and_scripts(served: tuple[str, str, Path]) -> None:
    kind, url, _ = served
    refused = ["thumbnail/0/99999", "thumbnail/0/..%2f..%2fmeta.json", "assets-saekit/0/..%2fserver.py", "app/static/x"]
    for path in [*refused, "assets-saekit/0/server.py"]:
        status, body = fetch(f"{url}/{path}")
        # Streamlit answers any unknown address with its own start page.
        assert status in (400, 403, 404) or b"<title>Streamlit</title>" in body, path
    if kind == "image":
        status, body = fetch(f"{url}/thumbnail/0/0")
        assert (status, body[8:12]) == (200, b"WEBP")


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""
