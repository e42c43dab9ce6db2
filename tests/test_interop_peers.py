"""SAELens, sparsify and dictionary_learning themselves, in their environment (scripts/setup_peers.sh), beside ours."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("SAEKIT_PEERS", ROOT / ".peers")) / "bin" / "python"
is_ready = PYTHON.is_file() and any(PYTHON.parents[1].glob("lib/python*/site-packages/dictionary_learning"))
pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(not is_ready, reason=f"no environment of the peers at {PYTHON}: scripts/setup_peers.sh"),
]
LIBRARIES = {"saelens", "sparsify", "dictionary_learning"}


def roundtrip_script() -> ModuleType:
    path = ROOT / "scripts" / "interop_roundtrip.py"
    spec = importlib.util.spec_from_file_location("interop_roundtrip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_and_we_read_each_others_files_alike():
    script = roundtrip_script()
    rows = script.roundtrip(PYTHON, d_in=32, n_rows=64)
    for direction in ("they read ours", "we read theirs"):
        assert {row["library"] for row in rows if row["direction"] == direction} == LIBRARIES
    assert script.wrong(rows) == []
    assert all(row["l0"] > 0 for row in rows)
