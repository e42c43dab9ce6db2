"""The house rules that a reader relies on: imports point down the floors, importing stays light, names are public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import saekit

ROOT = Path(__file__).parents[1]
# Every room of saekit/ and its floor, from the ground up (docs/architecture.md): imports come from lower floors only.
ORDER = [
    ["errors"],
    ["files"],
    ["metrics", "kernels", "cache"],
    ["hooks", "inputs", "store", "autoencoders"],
    ["backbones", "training", "index", "interop"],
    ["intervene"],
    ["evaluation"],
    ["jobs"],
    ["cli"],
]
FLOORS = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
MODULES = sorted((ROOT / "saekit").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "saekit").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of saekit that a module imports, wherever in the file the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names = [
                f"{node.module}.{alias.name}" if node.module == "saekit" else str(node.module) for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("saekit.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_floors(path: Path) -> None:
    here = room_of(path)
    if here in ("__init__", "__main__"):
        return
    below = {room for room in FLOORS if FLOORS[room] < FLOORS[here]}
    wrong = {room for room in imported_rooms(path) if room in FLOORS and room not in below and room != here}
    assert not wrong, f"{path.relative_to(ROOT)} (floor {FLOORS[here]}) imports {sorted(wrong)}"


def test_every_module_is_on_a_floor() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms == set(FLOORS)


def test_every_module_opens_with_a_docstring() -> None:
    silent = [str(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


@pytest.mark.parametrize(
    "module", ["saekit", "saekit.index", "saekit.store.examples", "saekit.cli", "saekit.jobs.explore"]
)
def test_importing_stays_light(module: str) -> None:
    code = f"import {module}, sys; print([m for m in ('torch', 'transformers', 'streamlit') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in saekit.__all__ if name != "__version__"])
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    assert getattr(saekit, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'extractt'"):
        _ = saekit.extractt
