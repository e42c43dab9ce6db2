"""The Compare page and the panels that change a feature: their numbers, addresses and messages, without a browser."""

import json
from pathlib import Path
from typing import Any

import pytest
from explorer_index import make_live_index, png
from indexes import BANK, DEAD, make_tiny_index
from test_explorer_apptest import open_page, payload, serve

from saekit.errors import ConfigError
from saekit.index import FeatureIndex
from saekit.jobs.explore import ExploreConfig, run
from saekit_explorer import compare_data
from saekit_explorer.settings import Settings, read_settings


def metrics(folder: Path, l0: float, fvu: float, *, store: str = "s", **more: Any) -> Path:
    """A metrics.json with the numbers that the page reads."""
    folder.mkdir(parents=True)
    reconstruction = {"fvu": fvu, "fvu_interval": [fvu - 0.01, fvu + 0.01], "mse": fvu, "cosine": 1 - fvu}
    pca = {"name": "pca", "k": l0, "reconstruction": {"fvu": 2 * fvu}, "faithfulness": {}}
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "kind": "Evaluation",
                "checkpoint": {"config": {"kind": "C", "sparsity": {"kind": "TopK", "k": int(l0)}}},
                "config": {"checkpoint": str(folder)},
                "data": {"store_hash": store, "hook_point": "layers.6", "held_out_share": 0.05},
                "latents": {
                    "l0": l0,
                    "n_latents": 64,
                    "dead_share": None,
                    "silent_share": 0.25,
                    "density_histogram": {"log10_edges": [-2, -1, 0], "counts": [1, 2]},
                },
                "methods": [
                    {
                        "name": "sae",
                        "k": l0,
                        "reconstruction": reconstruction,
                        "faithfulness": {"ce_recovered_mean": 0.9},
                    },
                    pca,
                ],
                "usefulness": {
                    "probing": {"results": [{"features": "latents", "k": 1, "accuracy": 0.8}]},
                    "description_length": [{"code": "sae", "n_bins": 16, "bits": 100.0}],
                },
                **more,
            }
        )
    )
    return folder


@pytest.fixture
def index(tmp_path: Path) -> FeatureIndex:
    return make_tiny_index(tmp_path / "mine" / "index")


def test_evaluations_and_indexes_stand_side_by_side(index: FeatureIndex, tmp_path: Path) -> None:
    small, large = metrics(tmp_path / "small" / "run", 8, 0.3), metrics(tmp_path / "large" / "run", 32, 0.1)
    other = make_tiny_index(tmp_path / "other" / "index", seed=1)
    found = compare_data.comparison(index, [small, large / "metrics.json", other.path, small])
    names = [entry["name"] for entry in found["entries"]]
    assert names == ["mine/index", "small/run", "large/run", "other/index"]
    assert [entry["mine"] for entry in found["entries"]] == [True, False, False, False]
    by = {each["key"]: each for each in found["measures"]}
    assert by["fvu"]["best"] == [2]
    assert found["entries"][1]["values"]["l0"] == 8
    assert found["entries"][1]["intervals"]["fvu"] == [0.29, 0.31]
    assert found["entries"][1]["about"] == "TopK k=8 at layers.6"
    assert found["entries"][1]["baselines"][0]["values"]["fvu"] == 0.6
    assert found["entries"][0]["values"]["l0"] == pytest.approx(index.n_codes / index.n_rows)
    assert (by["probe1"]["title"], by["bits"]["better"]) == ("Probe, k=1", -1)
    assert "dead" not in by
    assert not found["different_data"]
    assert found["x"] == ["l0", "bits", "d_sae"]
    assert found["y"][0] == "fvu"


def test_the_evaluation_of_this_index_is_this_index_and_other_data_is_said(tmp_path: Path) -> None:
    run_folder = metrics(tmp_path / "run", 8, 0.3)
    about = {"checkpoint": {"path": str(run_folder / "checkpoint"), "config": {}}}
    index = make_tiny_index(tmp_path / "index", **about)
    found = compare_data.comparison(index, [metrics(tmp_path / "b", 4, 0.5, store="t"), run_folder])
    assert [entry["mine"] for entry in found["entries"]] == [True, False]
    assert found["different_data"]


def test_what_cannot_be_compared_is_refused_at_the_start_all_at_once(index: FeatureIndex, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "metrics.json").write_text("[1]")
    paths = (tmp_path / "empty", tmp_path / "alien", tmp_path / "absent")
    with pytest.raises(ConfigError) as refused:
        run(ExploreConfig(index=index.path, compare=paths))
    for part in ("empty has no metrics.json", "alien/metrics.json is no evaluation", "absent has no metrics.json"):
        assert part in str(refused.value)
    good = metrics(tmp_path / "good", 8, 0.3)
    found = compare_data.comparison(index, [tmp_path / "empty", good])
    assert len(found["entries"]) == 2
    assert "empty has no metrics.json" in found["problems"][0]


def test_the_page_shows_only_what_was_named_and_keeps_its_axes_in_the_address(
    index: FeatureIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(index.path, monkeypatch)
    alone = payload(open_page("compare", x="bits"), "compare")
    assert [entry["name"] for entry in alone["entries"]] == ["mine/index"]
    small = metrics(tmp_path / "small", 8, 0.3)
    for name, value in Settings(index=str(index.path), compare=(str(small),)).to_environment().items():
        monkeypatch.setenv(name, value)
    assert read_settings().compare == (str(small),)
    page = payload(open_page("compare", x="bits", y="probe1", baselines="0"), "compare")
    assert page["view"] == {"x": "bits", "y": "probe1", "baselines": False}
    assert len(page["entries"]) == 2
    (small / "metrics.json").unlink()
    broken = open_page("compare")
    assert "cannot be read" in broken.error[0].value
    assert str(small) in broken.text[0].value


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer")
    for kind in ("text", "image"):
        make_live_index(path / kind, kind)
    return path


def test_steering_runs_when_it_is_asked_for_and_its_address_brings_it_back(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(live / "text", monkeypatch)
    app = open_page("feature", feature=BANK)
    assert not [
        each for each in app.main if getattr(getattr(each, "proto", None), "component_name", "") == "saekit.steered"
    ]
    app.toggle(key="steer").set_value(True).run()
    first = payload(app, "steered")
    assert first["prompt"] == "The thing I remember most is"
    asked = open_page("feature", feature=BANK, steer="true", prompt="a b <script>", do="Multiply by", amount="2.0")
    assert asked.number_input(key="amount").label == "Factor"
    found = payload(asked, "steered")
    assert found["prompt"] == "a b <script>"
    assert len(found["movers"]) > 1
    assert found["kl"] >= 0
    dead = open_page("feature", feature=DEAD, steer="true")
    assert any("never fires" in each.value for each in dead.caption)


def test_a_feature_of_this_text_is_ablated_everywhere_or_at_one_token(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(live / "text", monkeypatch)
    start = open_page("input", text="the cat sat on a mat")
    sent = payload(start, "live")
    codes = sent["codes"]
    assert len(sent["predicted"]) == len(sent["tokens"])
    assert all(len(act) == 3 for act in codes[0]["acts"])
    feature, (place, *_) = codes[0]["id"], codes[0]["acts"][-1]
    found = payload(open_page("input", text="the cat sat on a mat", change=feature), "effect")
    assert len(found["kl"]) == len(found["words"]) == len(found["movers"])
    assert max(found["kl"]) > 0
    here = open_page("input", text="the cat sat on a mat", change=feature, at=place)
    here.segmented_control(key="where").set_value("here").run()
    one = payload(here, "effect")
    assert max(one["kl"][:place], default=0) < 1e-6 < one["kl"][place]
    silent = next(i for i in range(24) if i not in {code["id"] for code in codes})
    nothing = open_page("input", text="the cat sat on a mat", change=silent)
    assert max(payload(nothing, "effect")["kl"]) == 0
    assert any("silent on this input" in each.value for each in nothing.caption)


def test_a_feature_of_this_image_is_changed_and_its_representation_compared(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saekit_explorer.change import Change
    from saekit_explorer.live import encode_image, load_live
    from saekit_explorer.live_steering import edit_of, effect_on_image

    serve(live / "image", monkeypatch)
    index = FeatureIndex.open(live / "image")
    model = load_live(index, Settings(index=str(index.path)))
    encoded = encode_image(model, png(), "a.png")
    feature = int(encoded.features[0])
    found = effect_on_image(model, png(), "a.png", feature, Change("set", 20.0), None)
    assert found["relative"] > 0
    assert found["classes"] is None
    assert len(found["by_patch"]) == encoded.n_places
    with pytest.raises(ConfigError, match="'erase'"):
        edit_of(Change("erase"))
    page = payload(open_page("input", example=3, change=feature), "effect")
    assert page["kind"] == "image"
