"""The explorer's pure renderers: what they say, that they are JSON, and that text stays text."""

import csv
import io
import json
import math
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexes import BANK, CAT, DEAD, DENSE, EMOJI, GRID, RED_CORNER, SCRIPT, make_tiny_index

from saekit.errors import ConfigError, FeatureIndexError
from saekit.index import FeatureIndex
from saekit_explorer import components, encoded, overview_data, table, widgets
from saekit_explorer.browse import DENSITY_STOPS, Browse, list_features, sort_columns


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return make_tiny_index(tmp_path_factory.mktemp("widgets") / "text")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return make_tiny_index(tmp_path_factory.mktemp("widgets") / "image", "image")


def strict_json(value: object) -> str:
    """JSON as browsers read it: no NaN, no infinity, no NumPy."""
    return json.dumps(value, allow_nan=False)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_every_feature_renders_to_strict_json(kind: str, request: pytest.FixtureRequest) -> None:
    index: FeatureIndex = request.getfixturevalue(kind)
    listing = list_features(index, Browse(alive=False))
    assert len(listing.features) == index.d_sae
    for feature in range(index.d_sae):
        parts = [widgets.examples(index, feature), widgets.side(index, feature)]
        parts.append(widgets.head(index, feature, Browse(), listing))
        assert all(strict_json(part) for part in parts)
    assert strict_json(table.table_rows(index, listing.features, None))
    assert strict_json(overview_data.overview(index))
    assert strict_json(encoded.payload(index, encoded.from_index(index, 0)))


def test_a_text_example_holds_the_values_of_the_index_at_the_right_words(text: FeatureIndex) -> None:
    payload = widgets.examples(text, BANK)
    top = payload["groups"][0]["examples"]
    for shown, example in zip(top, text.top_examples(BANK, n=20), strict=True):
        words = [payload["tokens"][i] for i in shown["tokens"]]
        assert words[shown["peak"]] == " bank"
        assert {words[place] for place, _ in shown["acts"]} == {" bank"}
        assert dict(shown["acts"])[shown["peak"]] == pytest.approx(example.value, abs=1e-4)


def test_no_example_of_a_group_is_from_the_same_document(text: FeatureIndex) -> None:
    for group in widgets.examples(text, DENSE)["groups"]:
        documents = [example["document"] for example in group["examples"]]
        assert len(documents) == len(set(documents)), group["key"]


def test_bands_hold_examples_of_their_quantiles(text: FeatureIndex) -> None:
    bands = {group["key"]: group["examples"] for group in widgets.examples(text, DENSE)["groups"]}
    assert list(bands) == ["top", "q80", "q60", "q40", "q20", "q0", "random"]
    for low in (80, 60, 40, 20, 0):
        quantiles = [example["quantile"] for example in bands[f"q{low}"]]
        assert all(low / 100 - 0.01 < quantile <= low / 100 + 0.21 for quantile in quantiles), low
    n_shown = [len(bands[f"q{low}"]) for low in (80, 60, 40, 20, 0)]
    assert n_shown == [6] * 5, "thirty documents, none of them twice, shared among five bands"


def test_markup_in_tokens_stays_as_it_is(text: FeatureIndex) -> None:
    payload = widgets.examples(text, SCRIPT)
    assert "<script>" in payload["tokens"]
    assert "&lt;" not in strict_json(payload), "escaping twice would show &lt; to the reader"
    assert widgets.side(text, SCRIPT)["tokens"][0][0] == "<script>"


def test_a_character_spread_over_tokens_is_shown_where_it_ends() -> None:
    vocabulary = [b" a", *(bytes([byte]) for byte in "🙂".encode()), b" bank", b"\xff"]
    assert widgets.decode_tokens(vocabulary, [0, 1, 2, 3, 4, 5]) == [" a", "", "", "", "🙂", " bank"]
    assert widgets.decode_tokens(vocabulary, [1, 2, 5]) == ["", "�", " bank"]
    assert widgets.decode_tokens(vocabulary, [0, 6, 5, 1]) == [" a", "�", " bank", "�"]
    assert widgets.decode_tokens(vocabulary, [99]) == ["?"]


@given(st.lists(st.binary(max_size=5), max_size=30))
def test_decoding_by_token_never_loses_or_adds_text(pieces: list[bytes]) -> None:
    words = widgets.decode_tokens(pieces, range(len(pieces)))
    assert len(words) == len(pieces)
    whole = b"".join(pieces)
    try:
        assert "".join(words) == whole.decode()
    except UnicodeDecodeError:
        assert "�" in "".join(words)


def test_an_emoji_shows_as_itself(text: FeatureIndex) -> None:
    tokens = widgets.examples(text, EMOJI)["tokens"]
    assert any("🙂" in token for token in tokens) or "�" in "".join(tokens)
    assert strict_json(tokens)


def test_heat_lies_on_the_patches_that_fired(image: FeatureIndex) -> None:
    payload = widgets.examples(image, RED_CORNER)
    for example in payload["groups"][0]["examples"]:
        assert example["grid"] == list(GRID)
        assert [place for place, _ in example["acts"]] == [0], "position 1 behind the CLS token is patch 0"
        left, top, right, bottom = example["crop"]
        assert 0 <= left < right <= example["width"]
        assert 0 <= top < bottom <= example["height"]


def test_class_table_and_captions_of_images(image: FeatureIndex) -> None:
    labels = widgets.side(image, CAT)["labels"]
    assert labels[0]["label"] == "cat"
    assert labels[0]["lift"] > 1
    captions = {example["caption"] for example in widgets.examples(image, CAT)["groups"][0]["examples"]}
    assert "A cat <b>in a field</b>." in captions


def test_thumbnails_are_addressed_by_the_content_of_the_index(image: FeatureIndex) -> None:
    src = widgets.image_record(image, 4)["src"]
    assert src == f"thumbnail/{image.meta['content_hash'][:16]}/4"


def test_flags_of_dead_dense_and_duplicate_features(text: FeatureIndex) -> None:
    assert widgets.flags(text, DEAD)[0][0] == "dead"
    assert widgets.flags(text, DENSE)[0][0] == "very dense"


def test_the_csv_quotes_markup_and_defuses_formulas(tmp_path: Path) -> None:
    index = make_tiny_index(tmp_path / "index")
    index.annotations.set(BANK, label='=HYPERLINK("x")', tags=["a", "b"], note='say "hi", <b>\nnow')
    text = table.to_csv(index, list_features(index, Browse()))
    rows = {row["feature"]: row for row in csv.DictReader(io.StringIO(text))}
    assert len(rows) == index.d_sae - 1
    assert rows[str(BANK)]["label"] == '\'=HYPERLINK("x")'
    assert rows[str(BANK)]["note"] == 'say "hi", <b>\nnow'
    assert rows[str(BANK)]["tags"] == "a;b"
    assert float(rows[str(BANK)]["density"]) == pytest.approx(float(index.stats["density"][BANK]), rel=1e-5)


@given(
    q=st.text(max_size=20),
    by=st.sampled_from(["token", "class", "words"]),
    sort=st.sampled_from(["best", "density", "max", "label", "entropy"]),
    stops=st.tuples(st.sampled_from(DENSITY_STOPS), st.sampled_from(DENSITY_STOPS)),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_list_survives_its_address(
    q: str, by: str, sort: str, stops: tuple[tuple[str, float], tuple[str, float]], switches: tuple[bool, bool, bool]
) -> None:
    browse = Browse(
        q=q,
        by=by,
        sort=sort,
        low=stops[0][0],
        high=stops[1][0],
        ascending=switches[0],
        alive=switches[1],
        annotated=switches[2],
    )
    assert Browse.from_query(browse.to_query()) == browse


@given(st.text(max_size=60))
def test_any_address_gives_a_list(text: FeatureIndex, query: str) -> None:
    assert len(list_features(text, Browse.from_query(query)).features) <= text.d_sae


def test_every_sort_orders_all_features(text: FeatureIndex) -> None:
    for sort in sort_columns(text):
        for ascending in (False, True):
            found = list_features(text, Browse(sort=sort, ascending=ascending, alive=False)).features
            assert sorted(found.tolist()) == list(range(text.d_sae)), sort
    found = list_features(text, Browse(sort="max", alive=False)).features
    assert found[-1] == DEAD, "features without a value come last"
    found = list_features(text, Browse(sort="max", ascending=True, alive=False)).features
    assert found[-1] == DEAD


def test_density_filters_keep_what_lies_between(text: FeatureIndex) -> None:
    found = list_features(text, Browse(low="10%")).features
    density = np.asarray(text.stats["density"])
    assert sorted(found.tolist()) == np.flatnonzero(density >= 0.1).tolist()


@pytest.mark.parametrize(("q", "looked_up"), [("the", {"the", " The"}), (" the", {" The"}), ("BANK", {" bank"})])
def test_a_search_means_whole_tokens_where_there_are_some(text: FeatureIndex, q: str, looked_up: set[str]) -> None:
    note = list_features(text, Browse(q=q)).note
    assert set(note.removeprefix("Tokens: ").replace("“", "").replace("”", "").split(", ")) == looked_up


def test_a_search_that_finds_nothing_says_what_it_looked_for(text: FeatureIndex) -> None:
    found = list_features(text, Browse(q="zzz"))
    assert len(found.features) == 0
    assert found.note == "No token of the indexed texts contains this."


def test_links_of_the_health_table_are_lists_of_the_features_page(text: FeatureIndex) -> None:
    for _, _, _, href in overview_data.health(text):
        if href is None:
            continue
        query = parse_qs(urlsplit(href).query)
        assert set(query) <= {"sort", "ascending", "alive", "density"}
        assert query.get("sort", ["best"])[0] in sort_columns(text)


def test_metrics_are_read_beside_the_index_and_shown(tmp_path: Path) -> None:
    index = make_tiny_index(tmp_path / "index")
    assert "FVU" not in dict((name, value) for name, value, _ in overview_data.facts(index))
    headline = {"fvu": 0.1234, "ce_recovered_zero": 0.97, "l0": 32.0, "dead_share": None}
    (index.path / "metrics.json").write_text(json.dumps({"kind": "Evaluation", "headline": headline}))
    facts = {name: value for name, value, _ in overview_data.facts(index)}
    assert (facts["FVU"], facts["CE recovered"]) == ("0.123", "97%")
    (index.path / "metrics.json").write_text("{ damaged")
    assert overview_data.headline(index) == {}


def test_starters_are_live_and_distinct(text: FeatureIndex) -> None:
    found = overview_data.starters(text).tolist()
    assert len(found) == len(set(found)) > 0
    assert DEAD not in found


def test_an_example_as_indexed_has_the_codes_of_the_index(image: FeatureIndex) -> None:
    found = encoded.from_index(image, 2)
    rows, features, values = image.latents_of_example(2)
    assert len(found.features) == len(rows)
    assert np.array_equal(found.features, features)
    assert np.array_equal(found.places, np.asarray(image.row_position)[rows] - 1)
    assert np.array_equal(found.values, values)
    with pytest.raises(FeatureIndexError, match="examples 0 to 29"):
        encoded.from_index(image, 30)


def test_numbers_are_short_and_never_nan() -> None:
    assert widgets.shown_number(float("nan")) == "–"
    assert widgets.shown_number(12345.6) == "12,346"
    assert widgets.shown_number(0.00012) == "1.2e-04"
    assert widgets.one_in(0.0) == "never"
    assert widgets.one_in(1 / 412) == "1 in 412"
    assert widgets.finite(math.inf) is None


def test_no_component_makes_markup_of_text() -> None:
    for path in sorted(components.FOLDER.glob("*.js")):
        script = path.read_text("utf-8")
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert forbidden not in script, f"{path.name} uses {forbidden}"
    assert set(components.STYLES) == {path.stem for path in components.FOLDER.glob("*.js")} - {"common"}


def test_the_explore_job_refuses_what_cannot_be_served(tmp_path: Path) -> None:
    from saekit.jobs.explore import ExploreConfig, run

    with pytest.raises(FeatureIndexError, match="is not a directory"):
        run(ExploreConfig(index=tmp_path / "absent", open_browser=False))
    with pytest.raises(ConfigError, match="ports are 0 to 65535"):
        ExploreConfig(index=tmp_path, port=70000)
    index = make_tiny_index(tmp_path / "index")
    with pytest.raises(ConfigError, match="is not a directory"):
        run(ExploreConfig(index=index.path, checkpoint=tmp_path / "absent", open_browser=False))


def test_a_taken_port_is_named_with_the_next_one(tmp_path: Path) -> None:
    import socket

    from saekit.jobs.explore import ExploreConfig, run

    index = make_tiny_index(tmp_path / "index")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port + 1}"):
            run(ExploreConfig(index=index.path, port=port, host="127.0.0.1", open_browser=False))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_job_stops_the_server(tmp_path: Path, stop: signal.Signals) -> None:
    index = make_tiny_index(tmp_path / "index")
    command = [sys.executable, "-m", "saekit", "explore", str(index.path), "--port", "0", "--no-open-browser"]
    # What runs the tests in the background may ignore SIGINT, and a child inherits that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    with process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if "Explorer: " in line).split()[1]
            assert url.startswith("http://localhost:")
            with urllib.request.urlopen(f"{url}/_stcore/health") as answer:
                assert answer.status == 200
            process.send_signal(stop)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/_stcore/health", timeout=5)
