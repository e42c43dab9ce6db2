"""Every page of the explorer without a browser: what it asks of the index, its address, and its messages."""

import json
import sys
from pathlib import Path

import pytest
from explorer_index import make_live_index, png
from indexes import BANK, DEAD, SCRIPT, make_tiny_index
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

import saekit_explorer
from saekit.index import FeatureIndex
from saekit_explorer.settings import Settings

APP = Path(saekit_explorer.__file__).parent / "app.py"
TIMEOUT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer")
    for kind in ("text", "image"):
        make_live_index(path / kind, kind)
    return path


@pytest.fixture
def text_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureIndex:
    """A tiny index of its own: tests may write annotations into it."""
    index = make_tiny_index(tmp_path / "index")
    serve(index.path, monkeypatch)
    return index


def serve(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in Settings(index=str(path), **settings).to_environment().items():
        monkeypatch.setenv(name, value)


def open_page(url: str = "overview", **params: object) -> AppTest:
    """The page at `url`, as a browser that opens this address would see it."""
    app = AppTest.from_file(str(APP), default_timeout=TIMEOUT)
    # AppTest opens pages by their file; ours are functions, which Streamlit knows by the hash of their address.
    app._page_hash = "" if url == "overview" else calc_hash(url)
    for name, value in params.items():
        app.query_params[name] = str(value)
    app.run()
    assert not app.exception, [each.value for each in app.exception]
    return app


def payload(app: AppTest, name: str) -> dict:
    """What the page sent to the component `name`."""
    found = [
        each.proto
        for each in app.main
        if type(each).__name__ == "UnknownElement" and each.proto.component_name == f"saekit.{name}"
    ]
    assert found, f"the page shows no {name}"
    return json.loads(found[0].json)


def test_the_overview_tells_what_the_index_is(text_index: FeatureIndex) -> None:
    data = payload(open_page(), "overview")
    assert data["title"] == "tiny · layers.1"
    facts = {name: value for name, value, _ in data["facts"]}
    assert facts["Features"] == "24"
    assert {name for name, *_ in data["health"]} >= {"Dead", "Near-duplicate pairs", "Dense, above 10%"}


def test_a_search_by_token_lists_its_features_first(text_index: FeatureIndex) -> None:
    app = open_page("features")
    app.text_input(key="q").set_value(" bank").run()
    data = payload(app, "table")
    assert data["rows"][0]["id"] == BANK
    assert data["rows"][0]["best"] == pytest.approx(1.0)
    assert payload(open_page("features", q=" bank"), "table")["rows"][0]["id"] == BANK


def test_a_search_by_class_and_by_words_of_annotations(text_index: FeatureIndex) -> None:
    text_index.annotations.set(7, label="Monday markets", tags=["finance"])
    by_words = payload(open_page("features", q="MARKETS", by="words"), "table")
    assert [row["id"] for row in by_words["rows"]] == [7]
    by_class = payload(open_page("features", q="sport", by="class"), "table")
    assert by_class["rows"][0]["best"] is not None


def test_sorting_filtering_and_paging_are_restored_by_the_address(text_index: FeatureIndex) -> None:
    data = payload(open_page("features", sort="max", ascending="true", alive="false"), "table")
    highest = [row["max"] for row in data["rows"] if row["max"] is not None]
    assert highest == sorted(highest)
    assert data["total"] == text_index.d_sae
    data = payload(open_page("features"), "table")
    assert DEAD not in [row["id"] for row in data["rows"]]
    text_index.annotations.set(3, note="x")
    data = payload(open_page("features", annotated="true", alive="false"), "table")
    assert [row["id"] for row in data["rows"]] == [3]


def test_the_controls_of_the_features_page_work_by_keyboard_widgets_alone(text_index: FeatureIndex) -> None:
    app = open_page("features")
    app.selectbox(key="sort").set_value("nearest").run()
    app.toggle(key="ascending").set_value(True).run()
    data = payload(app, "table")
    cosines = [row["nearest"] for row in data["rows"]]
    assert cosines == sorted(cosines)


def test_an_address_with_nonsense_shows_the_defaults(text_index: FeatureIndex) -> None:
    data = payload(
        open_page("features", sort="'; drop table", by="x", density="7", page="-3", alive="perhaps"), "table"
    )
    assert data["sort"] == "best"
    assert data["page"] == 1


def test_a_feature_page_shows_the_feature_of_its_address(text_index: FeatureIndex) -> None:
    app = open_page("feature", feature=SCRIPT, list="sort=max")
    head, examples, side = (payload(app, name) for name in ("head", "examples", "side"))
    assert head["id"] == examples["feature"] == SCRIPT
    assert head["list"] == "sort=max"
    assert side["tokens"][0][0] == "<script>"
    assert app.query_params["feature"] == str(SCRIPT)


def test_previous_and_next_follow_the_list_of_the_address(text_index: FeatureIndex) -> None:
    listed = [row["id"] for row in payload(open_page("features", sort="max"), "table")["rows"]]
    head = payload(open_page("feature", feature=listed[3], list="sort=max"), "head")
    assert (head["previous"], head["next"]) == (listed[2], listed[4])
    assert head["place"].startswith("4 of ")


def test_the_feature_number_box_changes_the_page(text_index: FeatureIndex) -> None:
    app = open_page("feature", feature=1)
    app.number_input(key="feature").set_value(0).run()
    assert payload(app, "head")["id"] == 0


def test_the_view_of_the_examples_comes_from_the_address(text_index: FeatureIndex) -> None:
    app = open_page("feature", feature=BANK, examples="q40", context="all", threshold="35", breaks="1")
    view = payload(app, "examples")["view"]
    assert view == {"examples": "q40", "context": "all", "threshold": 35, "breaks": True, "smooth": False}


def test_an_annotation_is_on_disk_at_once_and_there_after_a_restart(text_index: FeatureIndex) -> None:
    app = open_page("feature", feature=BANK)
    app.text_input(key=f"label-{BANK}").set_value("money <b>banks</b>").run()
    app.text_area(key=f"note-{BANK}").set_value("never of a river").run()
    saved = FeatureIndex.open(text_index.path).annotations.get(BANK)
    assert (saved.label, saved.note) == ("money <b>banks</b>", "never of a river")
    again = open_page("feature", feature=BANK)
    assert payload(again, "head")["label"] == "money <b>banks</b>"
    assert again.text_area(key=f"note-{BANK}").value == "never of a river"


def test_a_dead_feature_has_a_page(text_index: FeatureIndex) -> None:
    app = open_page("feature", feature=DEAD)
    assert payload(app, "head")["flags"][0][0] == "dead"
    assert payload(app, "side")["histogram"] is None


@pytest.mark.parametrize("asked", ["24", "99999999999999999999", "-1", "nan", "<script>"])
def test_a_feature_that_does_not_exist_is_a_message(text_index: FeatureIndex, asked: str) -> None:
    app = open_page("feature", feature=asked)
    assert app.error[0].value == "This page cannot be shown."
    assert "0 to 23" in app.text[0].value


@pytest.mark.parametrize("url", ["overview", "features", "feature", "input", "run"])
def test_a_missing_index_is_a_message_on_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    serve(tmp_path / "absent", monkeypatch)
    app = open_page(url)
    assert app.error[0].value == "This page cannot be shown."
    assert "absent" in app.text[0].value


def test_a_damaged_or_foreign_index_is_a_message(
    tmp_path: Path, text_index: FeatureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text_index.path / "by_feature" / "rows.npy").write_bytes(b"short")
    assert "rows.npy" in open_page().text[0].value
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "meta.json").write_text('{"kind": "Autoencoder", "schema": 1}')
    serve(foreign, monkeypatch)
    assert "Autoencoder" in open_page().text[0].value


def test_nothing_in_an_address_names_another_index(text_index: FeatureIndex, folder: Path) -> None:
    data = payload(open_page("overview", index=str(folder / "image"), path=str(folder / "image")), "overview")
    assert data["provenance"][0][1] == str(text_index.path.resolve())


def test_browsing_imports_no_torch(text_index: FeatureIndex) -> None:
    import subprocess

    code = (
        "import sys, saekit_explorer.data, saekit_explorer.views.input, saekit_explorer.live; "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_text_goes_through_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "text", monkeypatch)
    app = open_page("input", text="The tide <script>alert(1)</script>")
    data = payload(app, "live")
    assert "".join(data["tokens"]) == "The tide <script>alert(1)</script>"[: len("".join(data["tokens"]))]
    assert set(data["counts"]) == {4}, "TopK(k=4) fires four latents on every token"
    assert all(error is not None and error > 0 for error in data["error"])
    assert app.query_params["text"] == "The tide <script>alert(1)</script>"


def test_a_typed_text_goes_through_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "text", monkeypatch)
    app = open_page("input")
    app.text_area(key="text").set_value("The gull").run()
    assert payload(app, "live")["tokens"][0] == "The"


def test_an_empty_text_offers_texts_of_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "text", monkeypatch)
    app = open_page("input", text="   ")
    assert len(app.button) == 3
    app.button[0].click().run()
    assert payload(app, "live")["tokens"]


def test_a_text_longer_than_the_context_is_cut_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "text", monkeypatch)
    app = open_page("input", text="tide " * 60)
    assert "cut after 31 tokens" in app.warning[0].value


def test_a_missing_backbone_is_a_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "text", monkeypatch, backbone=str(folder / "nowhere"))
    app = open_page("input", text="The tide")
    assert app.error[0].value == "The model could not be run on this input."
    assert "nowhere" in app.text[0].value


def test_a_missing_checkpoint_is_a_message(text_index: FeatureIndex) -> None:
    app = open_page("input", text="The tide")
    assert app.error[0].value == "The model could not be run on this input."
    assert "/nowhere/run" in app.text[0].value


def test_an_example_image_is_shown_as_indexed_without_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "image", monkeypatch)
    data = payload(open_page("input", example=3), "live")
    assert data["error"] is None
    assert len(data["counts"]) == 24
    index = FeatureIndex.open(folder / "image")
    codes = index.latents_of_example(3)
    assert sum(len(code["acts"]) for code in data["codes"]) == len(codes[0])


def test_the_images_of_the_index_can_be_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "image", monkeypatch)
    app = open_page("input")
    images = payload(app, "gallery")["images"]
    assert len(images) == 20
    app.number_input(key="example").set_value(5).run()
    assert payload(app, "live")["image"]["src"].endswith("/5")


def test_a_thumbnail_goes_through_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "image", monkeypatch)
    data = payload(open_page("input", example=2, live="true"), "live")
    assert all(error is not None for error in data["error"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_an_upload_goes_through_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    serve(folder / "image", monkeypatch)
    app = open_page("input")
    app.file_uploader(key="upload").set_value(("mine.png", png(mode=mode), "image/png")).run()
    data = payload(app, "live")
    assert data["image"]["name"] == "mine.png"
    assert data["image"]["src"].startswith("data:image/webp;base64,")
    assert any("only this session" in each.value for each in app.caption)


def test_a_corrupt_upload_is_a_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(folder / "image", monkeypatch)
    app = open_page("input")
    app.file_uploader(key="upload").set_value(("broken.png", png()[:60], "image/png")).run()
    assert app.error[0].value == "The model could not be run on this input."
    assert "broken.png" in app.text[0].value
