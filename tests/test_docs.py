"""The documents run: README's and the tutorials' blocks, the links, and the options that docs/cli.md names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.cli import JOBS, load_job

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Every `saekit ...` command of a page's shell blocks, continuation lines joined."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("saekit ")]


@pytest.mark.embedded
@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " class" in done.stdout


@pytest.mark.embedded
@pytest.mark.slow
def test_the_readmes_shell_commands_run(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    for i, text in enumerate(topics.values()):
        folder = tmp_path / "texts" / ("long" if len(text) > 5000 else "short")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for words in commands(ROOT / "README.md"):
        if words[1] == "explore":  # serves until it is stopped; tests/browser drives it
            load_job("explore", words[2:])
            continue
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert (tmp_path / "index" / "meta.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documents_parses(page: Path) -> None:
    for words in commands(page):
        assert words[1] in JOBS, shlex.join(words)
        config, _ = load_job(words[1], words[2:])
        assert config is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        assert compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_job_has_a_section_in_the_command_line_page() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [job for job in JOBS if f"## saekit {job}" not in text] == []


def test_make_targets_that_the_readme_names_exist() -> None:
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    named = set(re.findall(r"make ([a-z-]+)", readme))
    assert {"demo", "demo-vision", "test"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, flags=re.M)] == []
    assert shutil.which("make")
