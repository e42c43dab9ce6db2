"""What people and machines do wrong, from the command line: one line that names it, and exit status 2."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.backbones import load_backbone
from saekit.cli import main
from saekit.errors import CheckpointError, ConfigError, InputError, StoreError
from saekit.inputs import measure_source, read_documents
from saekit.jobs.extract import extract
from saekit.store import ActivationStore
from saekit.training.checkpoint import RunDirectory
from tests.stores import make_tiny_store
from tests.tiny import make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("job", ["extract", "train", "index", "eval"])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_a_file_or_below_one_is_refused_in_one_line(
    job: str, out: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_tiny_store(tmp_path / "store")
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=16, d_sae=8, sparsity=TopK(k=2)))
    sae.save(tmp_path / "checkpoint", provenance=store.provenance())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "text.txt").write_text("Eight tokens or more are what a window has to have. " * 3)
    reads = ["--checkpoint", f"{tmp_path}/checkpoint", "--store", f"{tmp_path}/store"]
    options = {
        "extract": f"--model {model} --source {tmp_path} --hook-points layers.0 --text.context-size 32".split(),
        "train": ["--store", f"{tmp_path}/store", "--d-sae", "32"],
        "index": [*reads, "--no-logit-lens"],
        "eval": [*reads, "--backbone", "none"],
    }[job]
    assert main([job, "--out", str(tmp_path / out), *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Error: " in line]
    assert len(lines) == 1
    assert f"{tmp_path}/file is a file" in lines[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_what_the_machine_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(config: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/metrics.jsonl")

    monkeypatch.setattr("saekit.cli.load_job", lambda name, words: (None, refused))
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "PermissionError: /somewhere/metrics.jsonl: Permission denied\n"


def test_a_parquet_file_that_is_none_is_named_by_reader_and_measure(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="a.parquet is not a Parquet file"):
        measure_source(tmp_path)
    with pytest.raises(InputError, match="a.parquet is not a Parquet file"):
        list(read_documents(tmp_path))


def test_parquet_pages_that_are_damaged_are_named_with_the_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"text number {i}" for i in range(3000)]}), file, compression="gzip")
    content = bytearray(file.read_bytes())
    content[40:4000] = bytes(3960)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet is damaged after row \d+"):
        list(read_documents(file))


def test_a_saved_dataset_without_its_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="looks like a saved dataset and cannot be opened"):
        list(read_documents(tmp_path))


def test_a_hub_source_without_a_name_says_how_one_is_written() -> None:
    with pytest.raises(InputError, match="hf:owner/name"):
        list(read_documents("hf:"))


def test_one_hook_point_in_place_of_a_list_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hook_points=\['layers.0'\]"):
        extract(load_backbone(model), ["some words"], hook_points="layers.0", out=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_whose_meta_lacks_something_lists_it(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "store")
    meta = json.loads((tmp_path / "store/meta.json").read_text())
    del meta["n_rows"], meta["shards"]
    (tmp_path / "store/meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="meta.json lacks n_rows, shards"):
        ActivationStore.open(tmp_path / "store")
    (tmp_path / "store/meta.json").write_text("[]")
    with pytest.raises(StoreError, match="is not a JSON object"):
        ActivationStore.open(tmp_path / "store")


def test_a_store_without_its_mean_names_the_file(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "store")
    shutil.rmtree(tmp_path / "store/moments")
    with pytest.raises(StoreError, match="mean.npy, the mean of the store's rows, is missing or damaged"):
        store.moments()


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: meta.update(config=[]),
        lambda meta: meta["config"].update(d_sae="many"),
        lambda meta: meta["config"].update(unheard_of=1),
        lambda meta: meta["config"]["sparsity"].update(k=9),
    ],
)
def test_a_checkpoint_whose_config_was_edited_is_named(
    damage: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    SparseAutoencoder(SparseAutoencoderConfig(d_in=16, d_sae=8, sparsity=TopK(k=2))).save(tmp_path / "sae")
    meta = json.loads((tmp_path / "sae/meta.json").read_text())
    damage(meta)
    (tmp_path / "sae/meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"sae/meta.json makes no SparseAutoencoder"):
        load_autoencoder(tmp_path / "sae")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds a None, not a 'TrainingRun'"),
        ({"kind": "TrainingRun", "schema": 99}, "has schema 99; this saekit reads up to 1"),
        ({"kind": "TrainingRun", "schema": 1, "finished": True}, "lacks final, n_tokens_seen, seconds, state, step"),
    ],
)
def test_a_training_run_with_a_strange_pointer_is_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        RunDirectory(tmp_path, {}, 1)


def test_a_model_of_the_other_kind_is_no_measure_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_tiny_store(tmp_path / "store")
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=16, d_sae=8, sparsity=TopK(k=2)))
    sae.save(tmp_path / "sae", provenance=store.provenance())
    vit = make("vit", tmp_path / "vit")
    words = ["--checkpoint", f"{tmp_path}/sae", "--store", f"{tmp_path}/store", "--out", str(tmp_path)]
    assert main(["eval", *words, "--backbone", vit]) == 2
    assert "is a model of images" in capsys.readouterr().err


def test_a_port_or_address_that_cannot_be_had_is_one_line() -> None:
    from saekit.jobs.explore import _check_free

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is taken"):
            _check_free("localhost", port)
    assert _check_free("localhost", port) is None  # type: ignore[func-returns-value]
    with pytest.raises(ConfigError, match="no address of this machine"):
        _check_free("no-such-host.invalid", port)
    with pytest.raises(ConfigError, match="cannot be listened on"):
        _check_free("192.0.2.1", port)  # an address kept for documentation, which no machine has


def test_activations_of_three_dimensions_name_the_reshape() -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=16, d_sae=8, sparsity=TopK(k=2)))
    with pytest.raises(InputError, match=r"shape \[2, 4, 16\].*x.flatten\(0, -2\)"):
        sae.normalize.__wrapped__(sae, torch.zeros(2, 4, 16))  # type: ignore[attr-defined]


def test_a_run_in_place_of_its_checkpoint_names_the_checkpoint(tmp_path: Path) -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=16, d_sae=8, sparsity=TopK(k=2)))
    sae.save(tmp_path / "run" / "checkpoint")
    with pytest.raises(CheckpointError, match="is a training run. Its checkpoint is '.*run/checkpoint'"):
        load_autoencoder(tmp_path / "run")


def test_two_trainings_in_one_directory_are_refused(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run", {"kind": "TrainingRun"}, 1)
    first.claim()
    with pytest.raises(CheckpointError, match="Another process is training in"):
        RunDirectory(tmp_path / "run", {"kind": "TrainingRun"}, 1).claim()
    first.release()
    RunDirectory(tmp_path / "run", {"kind": "TrainingRun"}, 1).claim()
