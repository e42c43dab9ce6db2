"""`fit`: the one training loop, for one autoencoder or several on the same batches."""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.autoencoders.base import Autoencoder
from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.errors import ConfigError, InputError, require
from saekit.files import Json, to_tagged
from saekit.training.checkpoint import (
    RunDirectory,
    SavedState,
    load_optimizer_tensors,
    optimizer_tensors,
    refuse_small_disk,
)
from saekit.training.config import FitConfig, FitResult
from saekit.training.memory import is_out_of_memory, out_of_memory
from saekit.training.monitor import (
    DensityMeter,
    FiniteGuard,
    MetricsLog,
    Record,
    WindowMeter,
    finite,
    progress_bar,
    show_numbers,
)
from saekit.training.optim import (
    Schedule,
    make_optimizer,
    matmul_precision,
    resolve_lr,
    resolve_precision,
    take_step,
)
from saekit.training.report import write_report
from saekit.training.report_page import write_page
from saekit.training.resample import DeadResampler
from saekit.training.scaling import warn_about_weight
from saekit.training.stream import BatchStream
from saekit.training.trackers import Tracker, close_trackers, open_trackers

# The numbers a run ends with are those of this last share of its tokens.
FINAL_FRACTION = 0.1

logger = logging.getLogger(__name__)


def fit(
    models: Sequence[Autoencoder],
    batches: Iterable[Tensor],
    config: FitConfig | None = None,
    *,
    n_tokens: int | None = None,
    out: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train `models` in place, all of them on every batch of `[batch d_in]` raw activations.

    `batches` is a store's loader, a list of tensors (gone through repeatedly), or any iterable; `n_tokens` rows are
    used, by default all that the batches say they hold. Input mean and scale are not touched: set them before
    (`set_input_moments_`, from `store.moments()` or `saekit.metrics.input_moments`).

    With `out`, the run is kept in that directory (see `saekit.training.checkpoint`): the same call after a kill goes on
    from the last save to the weights it would have had, bit for bit on the same machine; after the end it trains
    nothing and loads them. `provenance` is kept in the checkpoints.

    Raises `ConfigError` for settings that cannot work (also: out of memory), `InputError` for batches that cannot be
    trained on (shape, NaN), `CheckpointError` when `out` holds another run.
    """
    run = _Run(list(models), BatchStream(batches, n_tokens), config or FitConfig(), out, dict(provenance or {}))
    return run.go()


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        models: list[Autoencoder],
        stream: BatchStream,
        config: FitConfig,
        out: str | Path | None,
        provenance: Json,
    ) -> None:
        self.models, self.stream, self.config = models, stream, config
        self.device, self.d_in = _shared_device_and_width(models)
        self.precision = resolve_precision(config.precision, self.device)
        self.schedule = Schedule(
            n_tokens=stream.n_tokens,
            lr_warmup_fraction=config.lr_warmup_fraction,
            lr_decay_fraction=config.lr_decay_fraction,
            sparsity_warmup_fraction=config.sparsity_warmup_fraction,
        )
        self.lrs = [resolve_lr(config.lr, model) for model in models]
        self.optimizers = [
            make_optimizer(m, lr, config.betas, config.adam_eps) for m, lr in zip(models, self.lrs, strict=True)
        ]
        self.windows = [WindowMeter(self.d_in, self.device) for _ in models]
        self.finals = [WindowMeter(self.d_in, self.device) for _ in models]
        self.densities = [DensityMeter(m) if isinstance(m, SparseAutoencoder) else None for m in models]
        self.resamplers = [self._resampler(model) for model in models]
        self.guard = FiniteGuard(self.device)
        self.step = self.n_seen = 0
        self.seconds = 0.0
        self.logged = {"n_seen": 0, "seconds": 0.0}
        self.trackers: list[Tracker] = []
        self.provenance = {**provenance, "training": self._settings()}
        self.directory = self._open(out)

    def go(self) -> FitResult:
        if self.directory is None:
            return self._go()
        self.directory.claim()
        try:
            return self._go()
        finally:
            self.directory.release()

    def _go(self) -> FitResult:
        directory = self.directory
        saved = directory.restore(self.models) if directory is not None else None
        self.log = MetricsLog(
            None if directory is None else directory.path / "metrics.jsonl",
            0 if saved is None else saved.record["step"],
        )
        if saved is not None:
            self._load(saved)
        if directory is not None and saved is not None and directory.is_finished:
            logger.info("%s is finished: its models were loaded, nothing was trained.", directory.path)
            return self._result(saved.record["final"], was_finished=True)
        for model in self.models:
            if isinstance(model, SparseAutoencoder):
                warn_about_weight(model)
        modes = [model.training for model in self.models]
        where = None if directory is None else directory.path
        self.trackers = open_trackers(self.config.trackers, where, self.provenance["training"], self.step)
        try:
            with matmul_precision(self.precision):
                self._train()
        finally:
            for model, mode in zip(self.models, modes, strict=True):
                model.train(mode)
            close_trackers(self.trackers)
        return self._finish()

    def _train(self) -> None:
        for model in self.models:
            model.train()
        started = saved_at = time.monotonic()
        before = self.seconds
        with progress_bar(self.stream.n_tokens, self.n_seen, self.config.progress) as bar:
            for x in self.stream.batches(self.n_seen):
                if len(x) == 0:
                    continue
                self._step(x)
                bar.update(len(x))
                is_last = self.n_seen >= self.stream.n_tokens
                self.seconds = before + time.monotonic() - started
                if self.step % self.config.log_every == 0 or is_last:
                    show_numbers(bar, self._log())
                if self.directory is not None and not is_last and self._save_is_due(time.monotonic() - saved_at):
                    self._save(finished=False)
                    saved_at = time.monotonic()

    def _step(self, x: Tensor) -> None:
        """One batch through every model. Waits for the device nowhere."""
        _check_batch(x, self.d_in, self.step)
        lr_scale = self.schedule.lr(self.n_seen, len(x))
        sparsity_scale = self.schedule.sparsity(self.n_seen, len(x))
        is_final = self.n_seen + len(x) > (1 - FINAL_FRACTION) * self.stream.n_tokens
        totals = []
        try:
            x = x.to(self.device, next(self.models[0].parameters()).dtype, non_blocking=True)
            for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
                if isinstance(model, SparseAutoencoder):
                    model.sparsity_scale.fill_(sparsity_scale)
                    model.set_progress_(self.n_seen / self.stream.n_tokens)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = model.training_loss(x)
                loss.total.backward()
                take_step(model, optimizer, self.lrs[i] * lr_scale, self.config.clip_grad_norm)
                if (resampler := self.resamplers[i]) is not None:
                    resampler.after_step_(self.n_seen, x, loss.x_hat, optimizer)
                totals.append(loss.total)
                self.windows[i].update(x, loss)
                if is_final:
                    self.finals[i].update(x, loss)
                    if (density := self.densities[i]) is not None:
                        density.update(loss)
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.models, len(x), self.device) from error
            raise
        self.guard.update(self.step, x, totals)
        self.step += 1
        self.n_seen += len(x)

    def _log(self) -> list[Record]:
        """Write the lines of the interval that ends here, and begin the next one."""
        self.guard.check()
        seconds = self.seconds - self.logged["seconds"]
        records = []
        for i, (model, window) in enumerate(zip(self.models, self.windows, strict=True)):
            record: Record = {
                "step": self.step,
                "tokens": self.n_seen,
                "seconds": round(self.seconds, 3),
                "tokens_per_s": round((self.n_seen - self.logged["n_seen"]) / max(seconds, 1e-9), 1),
                "model": i,
                **window.read(),
            }
            if isinstance(model, SparseAutoencoder):
                record["dead"] = float(model.is_dead.float().mean())
                record["sparsity_scale"] = float(model.sparsity_scale)
            record["lr"] = self.optimizers[i].param_groups[0]["lr"]
            records.append(record)
        self.log.write(records)
        for tracker in self.trackers:
            tracker.write(records)
        self.windows = [WindowMeter(self.d_in, self.device) for _ in self.models]
        self.logged = {"n_seen": self.n_seen, "seconds": self.seconds}
        return records

    def _finish(self) -> FitResult:
        final = []
        for model, window in zip(self.models, self.finals, strict=True):
            record = {"first_token": self.stream.n_tokens - window.fvu.n_rows, **finite(window.read())}
            if isinstance(model, SparseAutoencoder):
                record["dead"] = float(model.is_dead.float().mean())
            final.append(record)
        if self.directory is not None:
            densities = [None if meter is None else meter.firing.density() for meter in self.densities]
            at = self.directory.path
            write_report(at / "report.png", self.log.records, densities)
            write_page(at / "report.html", at / "report.png", at.name, final, self.directory.description)
            self._save(finished=True, final=final)
        return self._result(final, was_finished=False)

    def _save_is_due(self, seconds_since: float) -> bool:
        every = self.config.save_every
        return seconds_since >= 60 * self.config.save_minutes or (every is not None and self.step % every == 0)

    def _save(self, finished: bool, final: list[Record] | None = None) -> None:
        assert self.directory is not None
        self.guard.check()
        tensors = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for i in range(len(self.models)):
            tensors |= optimizer_tensors(self.optimizers[i], f"optimizer{i}")
            tensors |= self.windows[i].state(f"window{i}") | self.finals[i].state(f"final{i}")
            if (density := self.densities[i]) is not None:
                tensors |= density.state(f"density{i}")
            if (resampler := self.resamplers[i]) is not None:
                tensors |= resampler.state(f"resample{i}")
        record = {
            "step": self.step,
            "n_tokens_seen": self.n_seen,
            "seconds": self.seconds,
            "logged": self.logged,
            "cursor": self.stream.cursor(),
            "final": final,
        }
        self.directory.save(self.models, SavedState(tensors=tensors, record=record), self.provenance, finished)

    def _load(self, saved: SavedState) -> None:
        self.step, self.n_seen = saved.record["step"], saved.record["n_tokens_seen"]
        self.seconds = saved.record["seconds"]
        if not saved.tensors:
            return
        self.logged = saved.record["logged"]
        self.stream.seek(saved.record["cursor"])
        for i in range(len(self.models)):
            load_optimizer_tensors(self.optimizers[i], f"optimizer{i}", saved.tensors)
            self.windows[i].load_state(f"window{i}", saved.tensors)
            self.finals[i].load_state(f"final{i}", saved.tensors)
            if (density := self.densities[i]) is not None:
                density.load_state(f"density{i}", saved.tensors)
            if (resampler := self.resamplers[i]) is not None:
                resampler.load_state(f"resample{i}", saved.tensors)
        torch.set_rng_state(saved.tensors["rng.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.tensors["rng.cuda"], self.device)
        logger.info("Going on from step %d of %s.", self.step, self.directory.path if self.directory else "")

    def _result(self, final: list[Record], was_finished: bool) -> FitResult:
        return FitResult(
            n_steps=self.step,
            n_tokens=self.n_seen,
            seconds=self.seconds,
            metrics=self.log.records,
            final=final,
            checkpoints=[] if self.directory is None else self.directory.checkpoints,
            was_finished=was_finished,
        )

    def _resampler(self, model: Autoencoder) -> DeadResampler | None:
        config = self.config
        if not config.resample_at or not isinstance(model, SparseAutoencoder):
            return None
        return DeadResampler(model, self.stream.n_tokens, config.resample_at, config.resample_tokens)

    def _settings(self) -> Json:
        """What decides the weights a run comes to, beside models and data: kept in the checkpoint."""
        cosmetic = ("log_every", "save_minutes", "save_every", "progress", "trackers")
        settings = {key: value for key, value in to_tagged(self.config).items() if key not in cosmetic}
        stream = {"n_tokens": self.stream.n_tokens, "batch_size": self.stream.batch_size}
        return {**settings, "precision": self.precision, **stream}

    def _open(self, out: str | Path | None) -> RunDirectory | None:
        if out is None:
            return None
        # Hours later, when the report is drawn, would be a bad time to say so.
        require("matplotlib", "train")
        models = [{"class": type(model).__name__, "config": to_tagged(model.config)} for model in self.models]
        description = {"kind": "TrainingRun", "models": models, "provenance": self.provenance}
        refuse_small_disk(Path(out), sum(12 * p.numel() for model in self.models for p in model.parameters()))
        return RunDirectory(out, json.loads(json.dumps(description)), len(self.models))


def _shared_device_and_width(models: Sequence[Autoencoder]) -> tuple[torch.device, int]:
    if not models:
        raise ConfigError("fit was given no models; give a list, e.g. fit([sae], batches).")
    devices = {str(parameter.device) for model in models for parameter in model.parameters()}
    widths = {int(model.config.d_in) for model in models}
    if len(devices) > 1 or len(widths) > 1:
        raise ConfigError(
            f"Models on one stream of batches share a device and a width; these have {devices}, {widths}."
        )
    return next(models[0].parameters()).device, widths.pop()


def _check_batch(x: Tensor, d_in: int, step: int) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"Batch {step} is {x.dtype} of shape {list(x.shape)}; it must be floating [batch {d_in}].")
    if x.shape[1] != d_in:
        raise InputError(f"Batch {step} is {x.shape[1]} wide and the models take d_in={d_in}.")
