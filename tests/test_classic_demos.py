"""The classic demonstrations run (on stand-in data), and their page shows every one of them with its real numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "scripts" / "classic"
sys.path.insert(0, str(FOLDER))
common = importlib.import_module("common")
demo_data = importlib.import_module("demo_data")
page = importlib.import_module("page")


@pytest.fixture(autouse=True)
def _style():
    common.style()
    import matplotlib.pyplot as plt

    with plt.rc_context(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    plt.close("all")


# matplotlib asks torch's tensors for an array in NumPy 2's way; a few steps on little data converge nowhere.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", page.scripts())
def test_it_runs_and_writes_a_small_figure(name, tmp_path, capsys):
    module = importlib.import_module(name)
    demo = common.Demo(name, module.__doc__.splitlines()[0], smoke=True, out=tmp_path)
    module.main(demo)
    assert demo.rows
    assert all({"claim", "measured", "reference", "from", "met"} == set(row) for row in demo.rows)
    assert json.dumps(demo.rows, allow_nan=False)
    figure = tmp_path / "images" / "classic" / f"{name}.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert 2_000 < figure.stat().st_size <= common.MAX_FIGURE_BYTES


@pytest.mark.parametrize("name", page.scripts())
def test_it_says_what_it_claims_and_on_what_data(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert f"\nCommand   python scripts/classic/{name}.py\n" in text
    assert "\nData      " in text
    assert "\nClaim     " in text


def test_the_page_shows_every_demonstration_with_numbers_that_meet_their_claims():
    assert page.problems() == []


def test_a_row_that_is_not_met_or_old_is_a_problem(tmp_path, monkeypatch):
    record = {"name": page.demonstrations()[0], "title": "", "smoke": True, "seconds": 1.0}
    row = {"claim": "a | b", "measured": 2.0, "reference": "< 1", "from": "theory", "met": False}
    monkeypatch.setattr(page, "records", lambda: [record | {"rows": [row]}])
    wrong = "\n".join(page.problems())
    for part in ("smoke run", "not met: a | b", "the table is old", "has no numbers"):
        assert part in wrong
    assert "| a \\| b | 2 | < 1 | theory | NO |" in page.filled(page.PAGE.read_text(encoding="utf-8"), page.records())


def test_stems_of_documents_are_words_without_endings():
    text = "The games and gaming tools of 3 players, libraries library packaged"
    assert demo_data._stems(text) == ["game", "gaming", "tool", "player", "librar", "librar", "packag"]
