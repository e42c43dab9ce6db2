"""`FitConfig`, what training is told, and `FitResult`, what it comes to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saekit.errors import ConfigError
from saekit.training.monitor import Record
from saekit.training.optim import PRECISIONS
from saekit.training.trackers import check_trackers


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train: the optimizer, its schedules, and how often to look and to save."""

    lr: float | Literal["auto"] = "auto"
    """Peak learning rate of Adam. "auto" is 2e-4 / sqrt(d_sae / 16384), which Gao et al. 2024 (arXiv:2406.04093) fitted
    for TopK; 1e-3 for autoencoders that are not sparse."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    lr_warmup_fraction: float = 0.05
    """The learning rate rises linearly from 0 over this share of the run."""
    lr_decay_fraction: float = 0.2
    """The learning rate falls linearly to 0 over this last share of the run."""
    sparsity_warmup_fraction: float = 0.05
    """The sparsity coefficient rises linearly from 0 over this share of the run (L1 and KL; TopK has none)."""
    clip_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to this one; 0 switches that off. Adam does not mind a constant
    factor, so a loss of any scale can be clipped at 1."""
    resample_at: tuple[float, ...] = ()
    """Shares of the run at which dead latents start again in the directions of badly reconstructed rows, with fresh
    optimizer state (Bricken et al. 2023: 0.125 0.25 0.375 0.5)."""
    resample_tokens: int = 819_200
    """Tokens before each of these moments among which the rows are drawn."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "bf16_select"] = "auto"
    """Matrix products in "fp32", "tf32" (CUDA) or "bf16" (autocast); parameters stay fp32. "auto": tf32 on CUDA.
    "bf16_select", for CPUs with bf16 instructions: bf16 finds the active latents, fp32 computes them, to the same
    result."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl; between them nothing waits for the device."""
    save_minutes: float = 10.0
    """Minutes between two saves that a killed run can go on from."""
    save_every: int | None = None
    """Save every this many steps as well."""
    progress: bool = True
    """Show the progress bar (stderr)."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also send the numbers of metrics.jsonl to TensorBoard (RUN/tensorboard) or Weights & Biases."""

    def __post_init__(self) -> None:
        shares = ("lr_warmup_fraction", "lr_decay_fraction", "sparsity_warmup_fraction")
        rules = [(name, "a share in 0..1", 0 <= getattr(self, name) <= 1) for name in shares]
        rules += [
            ("lr", "above 0, or 'auto'", self.lr == "auto" or self.lr > 0),
            ("adam_eps", "above 0", self.adam_eps > 0),
            ("clip_grad_norm", "0 or more", self.clip_grad_norm >= 0),
            ("precision", "one of " + ", ".join(PRECISIONS), self.precision in PRECISIONS),
            ("resample_at", "shares in 0..1", all(0 < share < 1 for share in self.resample_at)),
            ("resample_tokens", "1 or more", self.resample_tokens >= 1),
            ("log_every", "1 or more", self.log_every >= 1),
            ("save_minutes", "above 0", self.save_minutes > 0),
            ("save_every", "1 or more, or None", self.save_every is None or self.save_every >= 1),
        ]
        wrong = [f"{name}={getattr(self, name)!r}, must be {rule}" for name, rule, holds in rules if not holds]
        check_trackers(self.trackers)
        if wrong:
            raise ConfigError(f"FitConfig: {'; '.join(wrong)}.")


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run came to."""

    n_steps: int
    """Optimizer steps, of all attempts together."""
    n_tokens: int
    """Rows trained on."""
    seconds: float
    """Training time, of all attempts together."""
    metrics: list[Record]
    """One line per model and log interval, as in metrics.jsonl."""
    final: list[Record]
    """Per model: loss, l0, fvu over the last tenth of the tokens, each measured before it was learnt from; `dead` at
    the end; `first_token`, where that tenth began."""
    checkpoints: list[Path]
    """Where the trained autoencoders are; empty without `out`."""
    was_finished: bool
    """True when `out` already held this run, finished: nothing was trained, the models were loaded from it."""
