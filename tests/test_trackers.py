"""TensorBoard and Weights & Biases: that a run's numbers arrive there, also those after a resume."""

import os
from pathlib import Path

import pytest
import torch

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.errors import ConfigError, MissingExtraError
from saekit.training import FitConfig, fit
from saekit.training.trackers import Tracker, check_trackers, close_trackers, open_trackers

BATCHES = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(12)]


def make_sae(seed: int = 0) -> SparseAutoencoder:
    return SparseAutoencoder(SparseAutoencoderConfig(d_in=8, d_sae=32, sparsity=TopK(k=4), seed=seed))


def config(*trackers: str) -> FitConfig:
    return FitConfig(log_every=3, trackers=trackers, progress=False, save_every=6)  # type: ignore[arg-type]


def test_tensorboard_gets_every_number_of_the_log_once_also_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stops(RuntimeError): ...

    def stopping() -> list[torch.Tensor]:
        def batches():  # type: ignore[no-untyped-def]
            yield from BATCHES[:10]
            raise Stops

        return batches()  # type: ignore[no-any-return]

    with pytest.raises(Stops):
        fit([make_sae()], stopping(), config("tensorboard"), n_tokens=192, out=tmp_path / "run")
    result = fit([make_sae()], BATCHES, config("tensorboard"), n_tokens=192, out=tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("fvu")]
    assert [step for step, _ in found] == [3, 6, 9, 12]
    assert [value for _, value in found] == pytest.approx([record["fvu"] for record in result.metrics])


def test_wandb_gets_the_numbers_and_the_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit([make_sae(0), make_sae(1)], BATCHES, config("wandb"), n_tokens=192, out=tmp_path / "run")
    runs = [name for name in os.listdir(tmp_path / "run" / "wandb") if name.startswith("offline-run-")]
    assert len(runs) == 1
    log = next((tmp_path / "run" / "wandb" / runs[0]).glob("*.wandb")).read_bytes()
    assert b"model 1/fvu" in log


def test_a_tracker_without_its_package_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'saekit\[wandb\]'"):
        fit([make_sae()], BATCHES, config("wandb"), n_tokens=192, out=tmp_path / "run")


def test_a_tracker_that_is_none_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'. Has: 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_a_tracker_needs_a_run_directory() -> None:
    with pytest.raises(ConfigError, match="need a run directory"):
        fit([make_sae()], BATCHES, config("tensorboard"), n_tokens=192)


def test_every_tracker_is_closed_also_when_one_fails_to(tmp_path: Path) -> None:
    closed = []

    class Broken(Tracker):
        def write(self, records: object) -> None: ...

        def close(self) -> None:
            closed.append(self)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        close_trackers([Broken(), Broken()])
    assert len(closed) == 2
    assert open_trackers((), None, {}, 0) == []
