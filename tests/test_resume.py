"""A killed training run goes on to the weights it would have had, bit for bit, wherever it was killed."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_worker import BATCH, N_STEPS, RESAMPLE_AT, Batches, fit_module, make_models, run
from torch import nn

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.errors import CheckpointError
from saekit.training import FitConfig, FitResult, fit
from saekit.training.checkpoint import load_optimizer_tensors, optimizer_tensors

WORKER = Path(__file__).with_name("resume_worker.py")
Run = tuple[list[SparseAutoencoder], FitResult]


def work(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(WORKER), str(out), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_no_drawing() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "write_report", lambda path, *_: Path(path).write_bytes(b"report"))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that was killed after 18: it saved at 16 and logged at 18."""
    out = tmp_path_factory.mktemp("killed") / "run"
    killed = work(out, "step", "18")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return out


@pytest.fixture
def killed(tmp_path: Path, killed_run: Path) -> Path:
    """A copy of the killed run."""
    return shutil.copytree(killed_run, tmp_path / "run")


def assert_same_weights(found: Path, expected: list[SparseAutoencoder]) -> None:
    for i, model in enumerate(expected):
        state = load_autoencoder(found / f"checkpoint-{i}").state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), f"{model.config.sparsity}: {name}"


def without_times(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in lines]


def test_resume_after_kill_9_gives_the_same_weights_for_every_sparsity(killed: Path, uninterrupted: Run) -> None:
    pointer = json.loads((killed / "run.json").read_text())
    assert (pointer["step"], pointer["finished"]) == (16, False)
    models, result = run(killed)
    assert not result.was_finished
    assert result.n_steps == N_STEPS
    assert_same_weights(killed, uninterrupted[0])
    for model, expected in zip(models, uninterrupted[0], strict=True):
        assert torch.equal(model.W_dec, expected.W_dec)


def test_metrics_after_a_resume_are_those_of_an_uninterrupted_run(killed: Path, uninterrupted: Run) -> None:
    # Step 18 was logged and lies after the save of step 16; a torn line is what a kill in the middle of a write leaves.
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 19, "lo')
    _, result = run(killed)
    expected = [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in uninterrupted[1].metrics
    ]
    assert without_times(killed) == expected
    assert result.final == uninterrupted[1].final
    steps = [line["step"] for line in expected if line["model"] == 0]
    assert steps == list(range(3, N_STEPS + 1, 3))


def test_a_kill_at_any_change_of_the_file_system_loses_nothing(tmp_path: Path) -> None:
    done = work(tmp_path, "every")
    assert done.returncode == 0, done.stderr
    n = int(done.stdout)
    assert n > 30
    expected = load_autoencoder(tmp_path / str(n - 1) / "checkpoint").state_dict()
    for i in range(n):
        names = sorted(entry.name for entry in (tmp_path / str(i)).iterdir() if not entry.name.endswith(".tmp"))
        assert names == ["checkpoint", "config.json", "metrics.jsonl", "report.html", "report.png", "run.json"], i
        found = load_autoencoder(tmp_path / str(i) / "checkpoint").state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), i


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, trained = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with caplog.at_level("INFO", logger="saekit"):
        again, result = run(tmp_path)
    assert result.was_finished
    assert "is finished" in caplog.text
    assert result.final == trained.final
    assert (result.n_steps, result.n_tokens) == (N_STEPS, N_STEPS * BATCH)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.W_enc, b.W_enc)


def test_another_run_in_the_same_directory_is_refused_with_what_differs(tmp_path: Path) -> None:
    config = FitConfig(lr=3e-3, progress=False)
    fit(make_models()[:1], Batches(), config, out=tmp_path, provenance={"store_hash": "aaaa"})
    other = [SparseAutoencoder(SparseAutoencoderConfig(d_in=8, d_sae=32, sparsity=TopK(k=3)))]
    with pytest.raises(CheckpointError) as error:
        fit(other, Batches(), FitConfig(lr=1e-3, progress=False), out=tmp_path, provenance={"store_hash": "bbbb"})
    message = str(error.value)
    assert "store_hash: 'aaaa' there, 'bbbb' now" in message
    assert "training.lr: 0.003 there, 0.001 now" in message
    assert "d_sae: 24 there, 32 now" in message
    assert "sparsity.kind" in message


def test_settings_that_do_not_change_the_weights_may_differ_on_resume(killed: Path, uninterrupted: Run) -> None:
    config = FitConfig(lr=3e-3, progress=False, log_every=5, save_minutes=1.0, resample_at=RESAMPLE_AT)
    fit(make_models(), Batches(), config, out=killed)
    assert_same_weights(killed, uninterrupted[0])


def test_read_once_batches_cannot_be_resumed_and_say_so(killed: Path) -> None:
    config = FitConfig(lr=3e-3, save_every=4, log_every=3, progress=False, resample_at=RESAMPLE_AT)
    stream = (batch for batch in list(Batches()))
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        fit(make_models(), stream, config, out=killed, n_tokens=N_STEPS * BATCH)


def test_a_damaged_save_is_a_checkpoint_error(killed: Path) -> None:
    weights = killed / "state/00000016/checkpoint-0/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="altered or truncated"):
        run(killed)


def test_optimizer_state_goes_back_to_the_layout_of_its_parameter() -> None:
    def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, seed: int) -> None:
        parameter.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).T
        optimizer.step()

    results = []
    for is_interrupted in (False, True):
        parameter = nn.Parameter(torch.ones(6, 4).T)  # column-major
        optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
        for seed in range(4):
            if is_interrupted and seed == 2:
                saved = {name: value.contiguous() for name, value in optimizer_tensors(optimizer, "o").items()}
                load_optimizer_tensors(optimizer, "o", saved)
            step(parameter, optimizer, seed)
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_random_noise_in_a_loss_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Noisy(SparseAutoencoder):
        stop_at: int | None = None

        def training_loss(self, x: torch.Tensor) -> Any:
            if self.stop_at is not None and int(self.n_tokens_seen) == self.stop_at * BATCH:
                raise Stop
            return super().training_loss(x + 0.1 * torch.randn_like(x))

    def train(out: Path, stop_at: int | None = None) -> Noisy:
        model = Noisy(dataclasses.replace(make_models()[0].config, seed=3))
        model.stop_at = stop_at
        fit([model], Batches(), FitConfig(lr=3e-3, save_every=5, progress=False), out=out)
        return model

    torch.manual_seed(0)
    whole = train(tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop_at=12)
    torch.manual_seed(99)
    assert torch.equal(train(tmp_path / "stopped").W_dec, whole.W_dec)
