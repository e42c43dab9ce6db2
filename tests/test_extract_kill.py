"""kill -9 at any moment: a second run ends with the same bytes as an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.store import ActivationStore

WORKER = Path(__file__).with_name("kill_worker.py")


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("kind", ["text", "image"])
def test_an_extraction_killed_at_any_file_operation_ends_with_the_same_bytes(tmp_path: Path, kind: str) -> None:
    ran = subprocess.run([sys.executable, WORKER, tmp_path, kind], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    moments = json.loads(ran.stdout)
    assert len(moments) >= 10
    whole = tree(tmp_path / "whole")
    assert len(ActivationStore.open(tmp_path / "whole").meta["shards"]) >= 2
    for moment in moments:
        assert tree(tmp_path / f"cut-{moment}") == whole, f"killed before file operation {moment}"
        ActivationStore.open(tmp_path / f"cut-{moment}", verify=True)
