"""The training loop: what it does to the models, what it writes down, and what it refuses."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from saekit.autoencoders import KLDivergence, Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.autoencoders.base import Autoencoder, LossTerms
from saekit.errors import CheckpointError, ConfigError, InputError
from saekit.metrics import fvu, input_moments, l0
from saekit.training import FitConfig, fit
from saekit.training.memory import rows_that_fit
from saekit.training.optim import Schedule
from saekit.training.report import write_report

D_IN, D_SAE = 12, 32


def rows(n: int, seed: int = 0) -> Tensor:
    """Sparse combinations of 20 directions in 12 dimensions, around a mean."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(20, D_IN, generator=generator), dim=1)
    is_on = torch.rand(n, 20, generator=generator) < 0.1
    return (is_on * torch.rand(n, 20, generator=generator)) @ directions + 3


def make_sae(sparsity: Any = None, seed: int = 0) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sparsity or TopK(k=3), seed=seed)
    sae = SparseAutoencoder(config)
    mean, mean_squared_norm = input_moments(rows(2048).split(512))
    sae.set_input_moments_(mean.float(), mean_squared_norm)
    return sae


def quiet(**settings: Any) -> FitConfig:
    return FitConfig(**{"lr": 3e-3, "progress": False, **settings})


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    d_in: int


class PlainAutoencoder(Autoencoder):
    """One matrix there and back: an autoencoder that counts nothing."""

    Config = PlainConfig

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.eye(config.d_in)[:, :4] * 0.5)

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.weight.T

    def training_loss(self, x: Tensor) -> LossTerms:
        latents = self.encode(x)
        x_hat = self.decode(latents)
        loss = (x - x_hat).square().sum(1).mean()
        return LossTerms(loss, {"reconstruction": loss.detach()}, x_hat.detach(), latents.detach())


def test_fit_lowers_the_fvu_of_held_out_rows() -> None:
    sae, held_out = make_sae(TopK(k=3)), rows(500, seed=0)
    before = fvu(held_out, sae(held_out)).item()
    fit([sae], rows(20_000).split(200), quiet(), n_tokens=40_000)
    after = fvu(held_out, sae(held_out)).item()
    assert after < 0.1 < before / 2


def test_a_model_fitted_beside_others_gets_the_weights_it_gets_alone() -> None:
    batches = rows(2000).split(100)
    alone = make_sae(TopK(k=3))
    fit([alone], batches, quiet())
    together = [make_sae(Relu(l1=1.0)), make_sae(TopK(k=3)), make_sae(KLDivergence())]
    fit(together, batches, quiet())
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together[1].state_dict()[name]), name


def test_fit_uses_exactly_n_tokens_and_goes_through_a_list_again() -> None:
    sae = make_sae()
    result = fit([sae], list(rows(300).split(128)), quiet(), n_tokens=700)
    assert result.n_tokens == 700 == int(sae.n_tokens_seen)
    assert result.n_steps == 3 + 3 + 1


def test_fit_takes_by_default_what_the_list_holds() -> None:
    assert fit([make_sae()], rows(300).split(128), quiet()).n_tokens == 300


def test_a_generator_that_ends_early_is_an_input_error_with_the_numbers() -> None:
    with pytest.raises(InputError, match=r"ended after 300 rows; n_tokens=500"):
        fit([make_sae()], (batch for batch in rows(300).split(100)), quiet(), n_tokens=500)


@pytest.mark.parametrize(
    ("batches", "n_tokens", "message"),
    [
        (rows(64), None, r"x\.split\(1024\)"),
        ((batch for batch in rows(64).split(32)), None, "needs n_tokens"),
        (rows(64).split(32), 0, "n_tokens=0"),
        ([], None, "n_tokens=0"),
    ],
    ids=["one tensor", "unknown length", "no tokens", "empty list"],
)
def test_batches_that_cannot_be_a_run_are_config_errors(batches: Any, n_tokens: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit([make_sae()], batches, quiet(), n_tokens=n_tokens)


def test_the_schedules_are_the_lines_they_say() -> None:
    schedule = Schedule(n_tokens=1000, lr_warmup_fraction=0.1, lr_decay_fraction=0.2, sparsity_warmup_fraction=0.5)
    assert [schedule.lr(n, 20) for n in (0, 40, 90, 500, 790, 890, 980)] == pytest.approx(
        [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05]
    )
    assert [schedule.sparsity(n, 20) for n in (0, 240, 490, 980)] == pytest.approx([0.02, 0.5, 1.0, 1.0])


def test_no_warm_up_means_full_strength_from_the_first_step() -> None:
    schedule = Schedule(n_tokens=10, lr_warmup_fraction=0.0, lr_decay_fraction=0.0, sparsity_warmup_fraction=0.0)
    assert (schedule.lr(0, 1), schedule.lr(9, 1), schedule.sparsity(0, 1)) == (1, 1, 1)


def test_the_sparsity_scale_is_warmed_up_and_ends_at_one() -> None:
    seen: list[float] = []

    class Watched(SparseAutoencoder):
        def training_loss(self, x: Tensor) -> LossTerms:
            seen.append(float(self.sparsity_scale))
            return super().training_loss(x)

    sae = Watched(make_sae(Relu()).config)
    fit([sae], rows(1000).split(100), quiet(sparsity_warmup_fraction=0.4))
    assert seen == pytest.approx([0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1, 1, 1])
    assert float(sae.sparsity_scale) == 1


def test_decoder_rows_have_unit_norm_after_fit() -> None:
    sae = make_sae(Relu(l1=1.0))
    fit([sae], rows(500).split(100), quiet())
    assert sae.W_dec.norm(dim=1).tolist() == pytest.approx([1.0] * D_SAE, abs=1e-5)


def test_each_line_of_metrics_describes_its_interval_as_a_whole(tmp_path: Path) -> None:
    sae = make_sae(TopK(k=3))
    batches = rows(700).split(100)
    fit([sae], batches, quiet(lr=1e-30, log_every=3), out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens"]) for line in lines] == [(3, 300), (6, 600), (7, 700)]
    with torch.no_grad():
        for line, start in zip(lines, (0, 300, 600), strict=True):
            x = torch.cat(batches)[start : line["tokens"]].double()
            double = make_sae(TopK(k=3)).double()
            assert line["fvu"] == pytest.approx(fvu(x, double(x)).item(), rel=1e-5)
            assert line["l0"] == pytest.approx(l0(double.encode(x)).item(), rel=1e-5)
            assert line["loss"] == pytest.approx(line["reconstruction"] + line["auxk"], rel=1e-5)
    assert {"seconds", "tokens_per_s", "lr", "sparsity_scale", "dead", "model"} <= set(lines[0])


def test_the_final_numbers_are_those_of_the_last_tenth() -> None:
    batches = rows(2000).split(100)
    result = fit([make_sae()], batches, quiet(lr=1e-30))
    assert result.final[0]["first_token"] == 1800
    x, sae = torch.cat(batches)[1800:].double(), make_sae().double()
    with torch.no_grad():
        assert result.final[0]["fvu"] == pytest.approx(fvu(x, sae(x)).item(), rel=1e-5)


def test_any_autoencoder_can_be_fitted_and_reports_what_it_has() -> None:
    model = PlainAutoencoder(PlainConfig(d_in=D_IN))
    result = fit([model], rows(3000).split(100), quiet(lr=1e-2))
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] or len(result.metrics) == 1
    assert 0 < result.final[0]["fvu"] < 10
    assert "dead" not in result.metrics[-1]


class CountReads(TorchDispatchMode):
    """Counts operations that make the host wait for the device (`item`, `nonzero`, boolean indexing)."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sparsity", [TopK(k=3), Relu(), KLDivergence()], ids=lambda spec: type(spec).__name__)
def test_steps_between_two_log_lines_never_wait_for_the_device(sparsity: Any) -> None:
    counts = []
    for n_steps in (10, 30):
        with CountReads() as reads:
            fit([make_sae(sparsity)], rows(n_steps * 10).split(10), quiet(log_every=1000))
        counts.append(reads.n)
    assert counts[0] == counts[1]


def test_fit_leaves_no_gradient_and_the_mode_it_found() -> None:
    sae = make_sae().eval()
    fit([sae], rows(300).split(100), quiet())
    assert not sae.training
    assert all(parameter.grad is None for parameter in sae.parameters())


def test_bfloat16_keeps_the_parameters_in_float32() -> None:
    sae = make_sae()
    result = fit([sae], rows(1000).bfloat16().split(100), quiet(precision="bf16"))
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    assert math.isfinite(result.final[0]["fvu"])


def test_the_float32_switch_of_torch_is_put_back_even_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(InputError):
            fit([make_sae()], [torch.full((4, D_IN), float("nan"))], quiet())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_refused_where_it_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="CUDA only"):
        fit([make_sae()], rows(10).split(10), quiet(precision="tf32"))


def test_nan_activations_name_their_step_and_are_never_saved(tmp_path: Path) -> None:
    batches = list(rows(1000).split(100))
    batches[4] = batches[4].clone()
    batches[4][7, 3] = float("nan")
    with pytest.raises(InputError, match="batch of step 4 holds NaN"):
        fit([make_sae()], batches, quiet(save_every=2), out=tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["step"] == 4
    saved = load_autoencoder(tmp_path / "run/state/00000004/checkpoint")
    assert all(bool(value.isfinite().all()) for value in saved.state_dict().values())


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    class Diverging(PlainAutoencoder):
        n_calls = 0

        def training_loss(self, x: Tensor) -> LossTerms:
            loss = super().training_loss(x)
            self.n_calls += 1
            return loss if self.n_calls <= 2 else loss._replace(total=loss.total * float("inf"))

    with pytest.raises(InputError, match="loss was not finite at step 2"):
        fit([Diverging(PlainConfig(d_in=D_IN))], rows(500).split(100), quiet())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, D_IN + 1), "13 wide and the models take d_in=12"),
        (torch.zeros(4, 2, D_IN), r"shape \[4, 2, 12\]"),
        (torch.zeros(4, D_IN, dtype=torch.int64), "torch.int64"),
    ],
    ids=["width", "dimensions", "integers"],
)
def test_a_batch_of_the_wrong_kind_is_an_input_error(batch: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit([make_sae()], [batch], quiet())


def test_models_of_two_widths_and_no_models_are_config_errors() -> None:
    other = SparseAutoencoder(SparseAutoencoderConfig(d_in=5, d_sae=8, sparsity=TopK(k=2)))
    with pytest.raises(ConfigError, match="share a device and a width"):
        fit([make_sae(), other], rows(10).split(10), quiet())
    with pytest.raises(ConfigError, match="no models"):
        fit([], rows(10).split(10), quiet())


def test_fit_config_refuses_all_wrong_settings_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        FitConfig(lr=-1.0, lr_decay_fraction=1.5, log_every=0)
    assert all(name in str(error.value) for name in ("lr=-1", "lr_decay_fraction=1.5", "log_every=0"))


def test_out_of_memory_says_what_would_fit() -> None:
    class Hungry(PlainAutoencoder):
        def training_loss(self, x: Tensor) -> LossTerms:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match=r"Out of memory on cpu.*100 rows.*batch_size=64 would fit"):
        fit([Hungry(PlainConfig(d_in=D_IN))], rows(100).split(100), quiet())


@pytest.mark.parametrize(
    ("total", "fixed", "per_row", "n_rows", "expected"),
    [(1000, 100, 10, 64, 32), (1000, 100, 10, 4096, 64), (1000, 895, 10, 64, 0), (10**9, 0, 1, 100, 64)],
)
def test_rows_that_fit_is_a_power_of_two_below_what_was_tried(
    total: int, fixed: int, per_row: int, n_rows: int, expected: int
) -> None:
    assert rows_that_fit(total, fixed, per_row, n_rows) == expected


def test_a_run_directory_holds_config_metrics_report_and_checkpoint(tmp_path: Path) -> None:
    sae = make_sae()
    result = fit([sae], rows(500).split(100), quiet(), out=tmp_path / "run", provenance={"hook_point": "layers.3"})
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        "checkpoint",
        "config.json",
        "metrics.jsonl",
        "report.html",
        "report.png",
        "run.json",
    ]
    assert (tmp_path / "run/report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert f">{result.final[0]['fvu']:.6g}<" in page
    loaded = load_autoencoder(result.checkpoints[0])
    assert loaded.provenance is not None
    assert loaded.provenance["hook_point"] == "layers.3"
    assert loaded.provenance["training"]["n_tokens"] == 500
    for name, value in sae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_several_models_get_numbered_checkpoints(tmp_path: Path) -> None:
    saes = [make_sae(seed=0), make_sae(seed=1)]
    result = fit(saes, rows(300).split(100), quiet(), out=tmp_path)
    assert [path.name for path in result.checkpoints] == ["checkpoint-0", "checkpoint-1"]
    loaded = [load_autoencoder(path) for path in result.checkpoints]
    assert all(torch.equal(a.W_dec, b.W_dec) for a, b in zip(saes, loaded, strict=True))


def test_an_out_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        fit([make_sae()], rows(100).split(100), quiet(), out=tmp_path)


def test_a_disk_too_small_for_the_saves_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saekit.training.checkpoint.free_bytes", lambda path: 100)
    with pytest.raises(CheckpointError, match="0 MiB are free"):
        fit([make_sae()], rows(100).split(100), quiet(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_while_saving_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saekit.training.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"is full.*run again"):
        fit([make_sae()], rows(100).split(100), quiet(), out=tmp_path / "run")


def test_the_progress_bar_goes_to_stderr_with_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    fit([make_sae()], rows(500).split(100), quiet(progress=True, log_every=2))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(word in printed.err for word in ("tok/s", "loss=", "L0=3.0", "FVU=", "dead=0.0%"))


def test_a_report_can_be_drawn_of_a_run_with_gaps(tmp_path: Path) -> None:
    records = [{"model": 0, "tokens": 10, "seconds": 1.0, "loss": None, "fvu": 0.5}]
    write_report(tmp_path / "report.png", records, [torch.zeros(8)])
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_batches_without_rows_are_passed_over() -> None:
    def stream() -> Iterator[Tensor]:
        yield torch.zeros(0, D_IN)
        yield rows(50)

    assert fit([make_sae()], stream(), quiet(), n_tokens=50).n_steps == 1
