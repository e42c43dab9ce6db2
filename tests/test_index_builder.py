"""Building an index: resumable with the same bytes, in any number of blocks, and never half-written."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import indexes
import numpy as np
import pytest

from saekit.errors import FeatureIndexError
from saekit.index import FeatureIndex, builder
from saekit.index.builder import IndexPlan, RowCodes, write_index

D_SAE = 16


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "examples"
    indexes.write_examples(path, "text", indexes.tiny_examples("text", 20, np.random.default_rng(0)))
    return path


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return indexes.tiny_codes(
        "text", indexes.tiny_examples("text", 20, np.random.default_rng(0)), D_SAE, np.random.default_rng(1)
    )


def plan(table: Path, **changes: object) -> IndexPlan:
    return IndexPlan(**{"d_sae": D_SAE, "examples": table, "meta": {"hook_point": "x"}, "block_rows": 100, **changes})  # type: ignore[arg-type]


def build(out: Path, table: Path, codes: np.ndarray, **changes: object) -> FeatureIndex:
    write_index(out, plan(table, **changes), indexes.encode_dense(codes), dict, progress=False)
    return FeatureIndex.open(out, verify=True)


@pytest.fixture(scope="module")
def whole(table: Path, codes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return build(tmp_path_factory.mktemp("whole") / "index", table, codes)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CHILD = """
import os, signal, sys
import numpy as np
import indexes
from saekit.index import builder, format as layout
from pathlib import Path

out, table, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
n_saved = 0
save_array, write_json = layout.save_array, builder.write_json

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counting_save(directory, name, array):
    global n_saved
    n_saved += 1
    if n_saved == kill_at:
        path = layout.array_path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"torn")
        die()
    save_array(directory, name, array)

def write_meta(path, value):
    if kill_at == -1 and path.name == "meta.json":
        die()
    write_json(path, value)
    if kill_at == -2 and path.name == "meta.json":
        die()

layout.save_array, builder.write_json = counting_save, write_meta
codes = indexes.tiny_codes(
    "text", indexes.tiny_examples("text", 20, np.random.default_rng(0)), 16, np.random.default_rng(1)
)
plan = builder.IndexPlan(d_sae=16, examples=table, meta={"hook_point": "x"}, block_rows=100)
builder.write_index(out, plan, indexes.encode_dense(codes), dict, progress=False)
"""


# Six blocks of seven arrays: 3 is inside the first, 17 inside the third, 43 on inside the merge.
@pytest.mark.parametrize("kill_at", [3, 8, 17, 43, 48, 70, -1, -2])
def test_a_killed_build_goes_on_to_the_same_bytes(
    kill_at: int, table: Path, codes: np.ndarray, whole: FeatureIndex, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", CHILD, str(out), str(table), str(kill_at)], env=environment)
    assert child.returncode == -signal.SIGKILL
    if kill_at != -2:
        with pytest.raises(FeatureIndexError, match="unfinished index"):
            FeatureIndex.open(out)
    build(out, table, codes)
    assert bytes_of(out) == bytes_of(whole.path)


def test_finished_blocks_are_not_encoded_again(
    table: Path, codes: np.ndarray, whole: FeatureIndex, tmp_path: Path
) -> None:
    encoded: list[int] = []
    interrupt_at = 300

    def encode(start: int, stop: int) -> Iterator[RowCodes]:
        if stop - start <= 100:  # a block; the size estimate looks at longer stretches
            encoded.append(start)
            if start == interrupt_at:
                raise KeyboardInterrupt
        yield from indexes.encode_dense(codes)(start, stop)

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "out", plan(table), encode, dict, progress=False)
    assert encoded == [0, 100, 200, 300]
    encoded.clear()
    interrupt_at = -1
    write_index(tmp_path / "out", plan(table), encode, dict, progress=False)
    assert encoded == [300, 400, 500]
    encoded.clear()
    write_index(tmp_path / "out", plan(table), encode, dict, progress=False)
    assert encoded == []
    assert bytes_of(tmp_path / "out") == bytes_of(whole.path)


def test_any_block_size_gives_the_same_codes_and_statistics(table: Path, codes: np.ndarray, tmp_path: Path) -> None:
    small, large = (build(tmp_path / str(rows), table, codes, block_rows=rows) for rows in (37, 65_536))
    for name in small.meta["arrays"]:
        file = f"{name}.npy"
        assert (small.path / file).read_bytes() == (large.path / file).read_bytes(), name


def test_any_feature_range_gives_the_same_index(
    table: Path, codes: np.ndarray, whole: FeatureIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saekit.index.merge._CODES_AT_ONCE", 50)
    ranged = build(tmp_path / "ranged", table, codes)
    assert ranged.meta["content_hash"] == whole.meta["content_hash"]


def test_stored_values_are_within_a_thousandth_of_what_was_encoded(
    table: Path, codes: np.ndarray, tmp_path: Path
) -> None:
    # Blocks of very different scale: the first rows are a million times stronger.
    scaled = codes.copy()
    scaled[:100] *= 1e6
    found = indexes.dense(build(tmp_path / "out", table, scaled))
    assert ((found > 0) == (scaled > 0)).all()
    active = scaled > 0
    assert np.abs(found[active] / scaled[active] - 1).max() < 1e-3


def test_a_dictionary_that_never_fires_gives_an_index_of_dead_features(table: Path, tmp_path: Path) -> None:
    index = build(tmp_path / "out", table, np.zeros((600, D_SAE), dtype=np.float32))
    assert index.n_codes == 0
    assert index.stats["is_dead"].all()
    assert index.top_examples(3) == []
    assert index.features_of_token(1).features.tolist() == []
    assert index.label_lift(0) == []
    assert len(index.latents_of_row(5)[0]) == 0


def test_an_infinite_latent_is_an_error_that_names_its_row(table: Path, codes: np.ndarray, tmp_path: Path) -> None:
    bad = codes.copy()
    bad[123, 5] = np.inf
    with pytest.raises(FeatureIndexError, match="Row 123 has a latent of value inf"):
        build(tmp_path / "out", table, bad)


def test_a_disk_that_is_too_small_is_refused_before_any_block(
    table: Path, codes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "free_bytes", lambda path: 1000)
    with pytest.raises(FeatureIndexError, match=r"An index of 600 rows with about \d+ active latents each needs .* kB"):
        build(tmp_path / "out", table, codes)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_an_error_from_which_the_build_goes_on(
    table: Path, codes: np.ndarray, whole: FeatureIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("saekit.index.builder.shutil.copytree", "saekit.index.format.create_array"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(FeatureIndexError, match="is full"):
                build(tmp_path / "out", table, codes)
    build(tmp_path / "out", table, codes)
    assert bytes_of(tmp_path / "out") == bytes_of(whole.path)


def test_the_size_estimate_covers_what_a_build_uses(
    table: Path, codes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def finish(out: Path, *rest: object) -> None:
        asked.append(sum(path.stat().st_size for path in out.rglob("*.npy")))

    monkeypatch.setattr(builder, "_finish", finish)
    big = np.tile(codes, (1, 64))
    write_index(tmp_path / "out", plan(table, d_sae=D_SAE * 64), indexes.encode_dense(big), dict, progress=False)
    refused = ""
    monkeypatch.setattr(builder, "free_bytes", lambda path: 0)
    try:
        write_index(tmp_path / "no", plan(table, d_sae=D_SAE * 64), indexes.encode_dense(big), dict, progress=False)
    except FeatureIndexError as error:
        refused = str(error)
    estimate = float(refused.split(" needs ")[1].split(" MB")[0]) * 1e6
    assert estimate + 0.05e6 >= asked[0]


def test_a_folder_with_something_else_is_left_alone(table: Path, codes: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FeatureIndexError, match="is not an index"):
        build(tmp_path / "notes", table, codes)
    with pytest.raises(FeatureIndexError, match="is a file"):
        build(tmp_path / "notes" / "thesis.txt", table, codes)
    assert os.listdir(tmp_path / "notes") == ["thesis.txt"]


def test_another_plan_in_the_same_folder_is_refused(table: Path, codes: np.ndarray, tmp_path: Path) -> None:
    index = build(tmp_path / "done", table, codes)
    with pytest.raises(FeatureIndexError, match="made from something else"):
        build(tmp_path / "done", table, codes, meta={"hook_point": "y"})
    assert FeatureIndex.open(index.path, verify=True).n_codes == index.n_codes
    bad = codes.copy()
    bad[550] = np.nan
    with pytest.raises(FeatureIndexError, match="nan"):
        build(tmp_path / "half", table, bad)
    with pytest.raises(FeatureIndexError, match="unfinished index of another"):
        build(tmp_path / "half", table, codes, meta={"hook_point": "y"})


def test_two_builds_in_one_folder_do_not_mix(table: Path, codes: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "out" / "partial").mkdir(parents=True)
    with open(tmp_path / "out" / "partial" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FeatureIndexError, match="Another process is building"):
            build(tmp_path / "out", table, codes)
