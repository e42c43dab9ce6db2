"""The command line: help of every job, one-line errors, exit codes."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from saekit import __version__
from saekit.cli import JOBS, main


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_every_job_documents_every_field(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, config, _ = JOBS[job]
    with pytest.raises(SystemExit) as stopped:
        main([job, "--help"])
    assert stopped.value.code == 0
    printed = " ".join(word for word in capsys.readouterr().out.replace("│", " ").split())
    assert f"usage: saekit {job}" in printed
    config_class = getattr(importlib.import_module(module), config)
    source = inspect.getsource(config_class)
    for field in dataclasses.fields(config_class):
        documented = re.search(rf'\n    {field.name}: (?:(?!\n    \w+: )[\s\S])*?\n    """', source)
        assert documented, f"{config}.{field.name} has no docstring, so --help says nothing of it"


def test_help_lists_the_jobs_and_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert [job for job in JOBS if f"\n  {job} " not in printed] == []
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"saekit {__version__}"


def test_an_unknown_job_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extrct"]) == 2
    assert "no job 'extrct'. Closest: 'extract'" in capsys.readouterr().err


def test_a_users_mistake_is_one_line_without_a_traceback() -> None:
    command = [sys.executable, "-m", "saekit", "explore", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == (
        "FeatureIndexError: nowhere is not a directory; a FeatureIndex is a directory with a meta.json."
    )


def test_an_interrupt_says_that_the_job_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saekit.cli.load_job", lambda name, words: (None, interrupted))
    assert main(["train"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m saekit explore --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--d-sae", "32", "--expansion", "2"], "exactly one of d_sae=32 and expansion=2 is needed"),
        (["--d-sae", "32", "top-k", "--k", "0"], "TopK: k=0 is not 1 or larger"),
    ],
)
def test_a_config_that_refuses_its_values_is_one_line(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--store", "a", "--out", "b", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert problem in printed.err


def test_words_that_cannot_be_parsed_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--stor", "a"])
    assert stop.value.code == 2
    assert "--store" in capsys.readouterr().err
