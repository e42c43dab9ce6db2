"""What a run tells while it goes: meters that stay on the device, `metrics.jsonl`, and the progress bar."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from saekit.autoencoders.base import LossTerms
from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.errors import InputError
from saekit.files import Json, atomic_write
from saekit.kernels import SparseLatents
from saekit.metrics import FiringMeter, FVUMeter, accumulator_dtype

Record = dict[str, Any]


class WindowMeter:
    """Losses, l0 and fvu of one model over a window of training, read with one host synchronisation."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.fvu = FVUMeter(d_in, device)
        self._names: list[str] = []
        self._sums = torch.zeros(0, dtype=accumulator_dtype(device), device=device)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch d_in"], loss: LossTerms) -> None:
        """Add one batch."""
        # A batch's fvu does not average to the window's and `dead` is a state, not a sum; both are read elsewhere.
        parts = {"loss": loss.total, **{k: v for k, v in loss.terms.items() if k not in ("fvu", "dead")}}
        if not self._names:
            self._names = sorted(parts)
            self._sums = self._sums.new_zeros(len(parts))
        self._sums += torch.stack([parts[name].detach().to(self._sums) for name in self._names]) * x.shape[0]
        self.fvu.update(x, loss.x_hat)

    def read(self) -> Record:
        """Means over the window's tokens, and its fvu. Empty before the first batch."""
        if not self._names:
            return {}
        numbers = torch.cat([self._sums / self.fvu.n_rows, self.fvu.value()[None]]).tolist()
        return dict(zip([*self._names, "fvu"], numbers, strict=True))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors from which `load_state` makes the same meter again; none before the first batch."""
        if not self._names:
            return {}
        return {
            f"{prefix}.mean": self.fvu.mean,
            f"{prefix}.squared_deviation": self.fvu.squared_deviation,
            f"{prefix}.squared_error": self.fvu.squared_error,
            f"{prefix}.n_rows": torch.tensor(self.fvu.n_rows),
            **{f"{prefix}.sums.{name}": value for name, value in zip(self._names, self._sums, strict=True)},
        }

    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state(prefix)` as it was saved."""
        mine = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        if not mine:
            return
        self.fvu.n_rows = int(mine["n_rows"])
        for name in ("mean", "squared_deviation", "squared_error"):
            getattr(self.fvu, name).copy_(mine[name])
        sums = {key.removeprefix("sums."): value for key, value in mine.items() if key.startswith("sums.")}
        self._names = sorted(sums)
        self._sums = torch.stack([sums[name] for name in self._names]).to(self._sums)


class DensityMeter:
    """On how many tokens each latent of a sparse autoencoder was active, over a window of training."""

    def __init__(self, model: SparseAutoencoder) -> None:
        self.firing = FiringMeter(model.config.d_sae, model.W_dec.device)
        self._active_above = model.sparsifier.active_above

    @torch.no_grad()
    def update(self, loss: LossTerms) -> None:
        """Add one batch."""
        if isinstance(loss.latents, SparseLatents):
            self.firing.update_sparse(loss.latents.latents, loss.x_hat.shape[0], loss.latents.values > 0)
        else:
            self.firing.update(loss.latents > self._active_above)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors from which `load_state` makes the same meter again."""
        return {f"{prefix}.n_fired": self.firing.n_fired, f"{prefix}.n_rows": torch.tensor(self.firing.n_rows)}

    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state(prefix)` as it was saved."""
        self.firing.n_fired.copy_(tensors[f"{prefix}.n_fired"])
        self.firing.n_rows = int(tensors[f"{prefix}.n_rows"])


class FiniteGuard:
    """Remembers on the device the first step at which activations or a loss were not finite."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((2,), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, step: int, x: Float[Tensor, "batch d_in"], losses: Sequence[Float[Tensor, ""]]) -> None:
        """Look at one batch and its losses; no synchronisation."""
        # A sum of absolute values is not finite exactly when one of them is not (float64: no overflow).
        size = x.abs().sum(dtype=accumulator_dtype(x.device))
        total = torch.stack([loss.detach().to(size) for loss in losses]).sum()
        bad = ~torch.isfinite(torch.stack([size, total]))
        self._first = torch.where((self._first < 0) & bad, step, self._first)

    def check(self) -> None:
        """Raise `InputError` naming the first bad step, if there was one."""
        in_x, in_loss = self._first.tolist()
        if in_x >= 0:
            raise InputError(
                f"The batch of step {in_x} holds NaN or infinite activations; the model was not saved after it. "
                "Find the rows with torch.isfinite(x).all(-1); float16 activations above 65504 are infinite."
            )
        if in_loss >= 0:
            raise InputError(
                f"The loss was not finite at step {in_loss} although the activations were; the model was not saved "
                "after it. A lower lr, gradient clipping (clip_grad_norm) or a longer warm-up helps."
            )


class MetricsLog:
    """`metrics.jsonl`: one JSON object per model and log interval, whole lines only, none twice after a resume."""

    def __init__(self, path: Path | None, last_step: int) -> None:
        """Keeps the lines of `path` up to `last_step`, drops what a killed run wrote after its last save."""
        self.records: list[Record] = []
        self._path = path
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.records = [record for line in lines if (record := _parse(line)) and record["step"] <= last_step]
        with atomic_write(path, "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in self.records)

    def write(self, records: Sequence[Record]) -> None:
        """Append `records`; values that JSON has no word for (NaN, infinity) become null."""
        clean = [finite(record) for record in records]
        self.records += clean
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in clean)


def progress_bar(n_tokens: int, n_seen: int, show: bool) -> "tqdm[Any]":
    """The live bar on stderr: tokens per second, and the numbers given to `show_numbers`."""
    return tqdm(
        total=n_tokens, initial=n_seen, unit="tok", unit_scale=True, disable=not show, desc="train", dynamic_ncols=True
    )


def show_numbers(bar: "tqdm[Any]", records: Sequence[Record]) -> None:
    """Put the last interval's loss, L0, FVU and dead share behind the bar; several models are separated by `|`."""

    def each(key: str, digits: str) -> str:
        return "|".join(format(record[key], digits) for record in records if record.get(key) is not None)

    shown = {
        "loss": each("loss", ".4g"),
        "L0": each("l0", ".1f"),
        "FVU": each("fvu", ".3f"),
        "dead": each("dead", ".1%"),
    }
    bar.set_postfix({name: text for name, text in shown.items() if text}, refresh=False)


def finite(record: Record) -> Record:
    """`record` with None for NaN and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _parse(line: str) -> Json | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return None
    return record if isinstance(record, dict) and "step" in record else None
