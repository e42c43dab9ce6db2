"""Which path a training step takes: dense while many latents are active, sparse once few are."""

import logging
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.errors import ConfigError
from saekit.kernels import cpu, dense, gpu, reference, selection
from saekit.kernels.buffers import GradientBuffers
from saekit.kernels.cpu_entries import CpuEntries
from saekit.kernels.entries import DenseEntries, Entries
from saekit.kernels.types import SparseLatents, Step, Weights

Path = Literal["auto", "dense", "sparse"]

MAX_DENSITY = 0.05
"""Share of active entries above which dense products are the faster ones; see scripts/bench_step.py."""

_logger = logging.getLogger("saekit.kernels")


class StepChooser:
    """Runs training steps by the dense or the sparse path; both give the same losses and gradients.

    On the CPU the choice depends on the batch and the weights alone, not on earlier steps, so a resumed run repeats it;
    on a GPU it depends on how many entries were active a few steps ago (see `gpu`). A sparse path exists for float32
    and float64 on the CPU and, with Triton, on CUDA; elsewhere `auto` is dense and `sparse` is refused.
    """

    def __init__(self, path: Path = "auto", max_density: float = MAX_DENSITY) -> None:
        self.path = path
        self.max_density = max_density
        self.buffers = GradientBuffers()
        self.gpu = gpu.GpuSteps()
        self._last: str | None = None

    def relu_step(self, x: Float[Tensor, "batch d_in"], weights: Weights, weigh_by_decoder: bool) -> Step:
        """ReLU latents and their L1 norm; see `reference.relu_step`."""
        if self._is_on_gpu(x, weights):
            entries = self.gpu.entries_above(x, weights, torch.zeros_like(weights.b_enc), self.path == "sparse")
            return self.took(gpu.relu_step(entries, weigh_by_decoder))
        if self._is_on_cpu(x, weights):
            limit = 1.0 if self.path == "sparse" else self.max_density
            step = cpu.relu_step(x, weights, weigh_by_decoder, limit, self.buffers)
            if step is not None:
                return self._took("sparse", step)
        return self._took("dense", reference.relu_step(x, dense.pre_activations(x, weights), weights, weigh_by_decoder))

    def topk_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, k: int, k_aux: int, is_dead: Bool[Tensor, " d_sae"]
    ) -> Step:
        """TopK latents and AuxK; see `reference.topk_step`."""
        if self._is_on_gpu(x, weights):
            if self._is_worth_it(k * len(x), x, weights):
                entries = self.gpu.largest_of_rows(x, weights, k)
                return self.took(gpu.step_with_auxk(entries, k * len(x), k_aux, is_dead))
            k_aux = k_aux if self.gpu.n_dead_at_most(len(is_dead)) else 0
        is_sparse = self.path == "sparse" or k <= self.max_density * len(weights.b_enc)
        if is_sparse and self._is_on_cpu(x, weights):
            return self._took("sparse", cpu.topk_step(x, weights, k, k_aux, is_dead, self.buffers))
        pre_acts = dense.pre_activations(x, weights)
        return self._took("dense", reference.topk_step(x, pre_acts, weights, k, k_aux, is_dead))

    def batch_topk_step(
        self,
        x: Float[Tensor, "batch d_in"],
        weights: Weights,
        n: int,
        k_aux: int,
        is_dead: Bool[Tensor, " d_sae"],
        guess: float | Float[Tensor, ""] = 0.0,
    ) -> Step:
        """The n largest latents of the batch, and AuxK; see `reference.batch_topk_step`. `guess` saves time only."""
        if self._is_on_gpu(x, weights):
            if self._is_worth_it(n, x, weights):
                return self.took(gpu.step_with_auxk(self.gpu.largest_of_batch(x, weights, n), n, k_aux, is_dead))
            k_aux = k_aux if self.gpu.n_dead_at_most(len(is_dead)) else 0
        if self._is_worth_it(n, x, weights) and self._is_on_cpu(x, weights):
            return self._took("sparse", cpu.batch_topk_step(x, weights, n, k_aux, is_dead, float(guess), self.buffers))
        pre_acts = dense.pre_activations(x, weights)
        return self._took("dense", reference.batch_topk_step(x, pre_acts, weights, n, k_aux, is_dead))

    def entries_above(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, floors: Float[Tensor, " d_sae"]
    ) -> Entries:
        """At least the pre-activations above their latent's floor; finish with `Entries.step` and `took`."""
        if self._is_on_gpu(x, weights):
            return self.gpu.entries_above(x, weights, floors, self.path == "sparse")
        if self._is_on_cpu(x, weights):
            limit = 1.0 if self.path == "sparse" else self.max_density
            with torch.no_grad():
                found = selection.active_above(x - weights.b_dec, weights, floors, limit)
            if found is not None:
                return CpuEntries(x, weights, found, self.buffers)
        return DenseEntries(x, weights)

    def largest_entries(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, n: int, guess: float | Float[Tensor, ""] = 0.0
    ) -> Entries:
        """At least the n largest pre-activations of the batch, where positive (`Entries.largest`)."""
        if self._is_on_gpu(x, weights) and self._is_worth_it(n, x, weights):
            return self.gpu.largest_of_batch(x, weights, n)
        if self._is_worth_it(n, x, weights) and self._is_on_cpu(x, weights):
            with torch.no_grad():
                found = selection.active_batch_topk(x - weights.b_dec, weights, n, float(guess))
            return CpuEntries(x, weights, found, self.buffers)
        return DenseEntries(x, weights)

    def took(self, step: Step) -> Step:
        """Log the path that a step made from `Entries` has taken, where it is another than before."""
        return self._took("dense" if isinstance(step.latents, Tensor) else "sparse", step)

    def watch_dead(self, tokens_since_fired: Int[Tensor, " d_sae"], dead_after: int, n_rows: int) -> None:
        """Tell before each training step how long latents have been silent, so that none need be counted in it."""
        if tokens_since_fired.device.type == "cuda":
            self.gpu.watch_dead(tokens_since_fired, dead_after, n_rows)

    def _is_worth_it(self, n: int, x: Tensor, weights: Weights) -> bool:
        max_density = self.gpu.max_density if x.device.type == "cuda" else self.max_density
        return self.path == "sparse" or n <= max_density * len(x) * len(weights.b_enc)

    def _is_on_gpu(self, x: Tensor, weights: Weights) -> bool:
        return x.device.type == "cuda" and self._may_be_sparse(x, weights)

    def _is_on_cpu(self, x: Tensor, weights: Weights) -> bool:
        return x.device.type != "cuda" and self._may_be_sparse(x, weights)

    def _may_be_sparse(self, x: Tensor, weights: Weights) -> bool:
        if self.path == "dense":
            return False
        obstacle = _obstacle(x, weights)
        if obstacle and self.path == "sparse":
            raise ConfigError(f"The sparse step was asked for, but {obstacle}. Type: kernel='auto'")
        return not obstacle

    def _took(self, path: str, step: Step) -> Step:
        if path != self._last:
            n_rows, d_sae = len(step.x_hat), len(step.n_fired)
            if step.x_hat.device.type == "cpu":
                density: float | None = float(step.n_fired.sum()) / max(1, n_rows * d_sae)
            else:
                density = self.gpu.density(n_rows, d_sae)
            detail = "" if density is None else f", {density:.2%} of latents active"
            _logger.info("Training takes the %s path (%s%s).", path, step.x_hat.device.type, detail)
            self._last = path
        return step

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepChooser":
        return StepChooser(self.path, self.max_density)


def active_relu(centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents | None:
    """`active.active_relu` where it exists, else None."""
    return selection.active_relu(centred, weights) if _is_on_cpu(centred, weights) else None


def active_topk(centred: Float[Tensor, "batch d_in"], weights: Weights, k: int) -> SparseLatents | None:
    """`active.active_topk` where it exists, else None."""
    return selection.active_topk(centred, weights, k) if _is_on_cpu(centred, weights) else None


def active_above(
    centred: Float[Tensor, "batch d_in"], weights: Weights, floors: Float[Tensor, " d_sae"]
) -> SparseLatents | None:
    """`active.active_above` where it exists, else None."""
    return selection.active_above(centred, weights, floors) if _is_on_cpu(centred, weights) else None


def row_dots(a: Float[Tensor, "rows width"], b: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """The dot product of each row of `a` with the same row of `b`."""
    if a.device.type == "cpu" and a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64):
        return cpu.row_dots(a, b)
    return torch.linalg.vecdot(a, b)


def _is_on_cpu(x: Tensor, weights: Weights) -> bool:
    return x.device.type == "cpu" and not _obstacle(x, weights)


def _obstacle(x: Tensor, weights: Weights) -> str:
    """Why no sparse code can serve these tensors; empty if the CPU's or the GPU's can."""
    device = x.device.type
    if device not in ("cpu", "cuda") or any(tensor.device.type != device for tensor in weights):
        return f"there is none for {device}"
    if device == "cuda" and not gpu.is_available():
        return "on CUDA it needs Triton (pip install 'saekit[kernels]')"
    if x.dtype not in (torch.float32, torch.float64) or any(tensor.dtype != x.dtype for tensor in weights):
        return f"it takes float32 or float64 throughout, not {x.dtype} and {weights.W_enc_T.dtype}"
    if device == "cpu" and torch.is_autocast_enabled("cpu"):
        return "autocast is on, which it does not follow"
    if x.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient of its input, which asks for one"
    return ""
