"""Runs a small `fit` in a process of its own and, when told to, kills it: `python resume_worker.py OUT [mode [n]]`.

Modes: `whole` (the default), `step` (SIGKILL as batch n is fetched), `every` (forks: the child dies at its n-th change
of the file system, for every n, and is run again to its end; the directories OUT/0, OUT/1 ... are left behind).
"""

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.sparsity import Sparsity
from saekit.metrics import input_moments
from saekit.training import FitConfig, FitResult, fit

fit_module = importlib.import_module("saekit.training.fit")

N_STEPS, BATCH, D_IN = 30, 16, 8
# After 19.5 steps: candidates are being collected when the run is killed at step 18.
RESAMPLE_AT = (0.4, 0.65)


class Batches(Sequence[torch.Tensor]):
    """The run's data, which kills the process as batch `kill_at` is fetched."""

    def __init__(self, kill_at: int | None = None) -> None:
        self._x = torch.randn(N_STEPS * BATCH, D_IN, generator=torch.Generator().manual_seed(0)).split(BATCH)
        self._kill_at = kill_at

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: Any) -> Any:
        if index == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._x[index]


def make_models() -> list[SparseAutoencoder]:
    """One small model for every sparsity, with schedules and a target L0 where it has them.

    Latents die within the run, so that AuxK and resampling have something to do.
    """
    mean, mean_squared_norm = input_moments(Batches())
    models = []
    for kind in get_args(Sparsity):
        sparsity = kind(k=2, k_start=6) if "k" in kind.__dataclass_fields__ else kind()
        config = SparseAutoencoderConfig(
            d_in=D_IN,
            d_sae=24,
            sparsity=sparsity,
            dead_after_tokens=4 * BATCH,
            target_l0=3.0 if kind.has_penalty else None,
            kernel="sparse" if kind.has_sparse_step else "auto",
        )
        models.append(SparseAutoencoder(config))
        models[-1].set_input_moments_(mean.float(), mean_squared_norm)
    return models


def run(
    out: Path, kill_at: int | None = None, save_every: int = 4, n_steps: int = N_STEPS, n_models: int | None = None
) -> tuple[list[SparseAutoencoder], FitResult]:
    """The whole run, or what is left of it."""
    models = make_models()[:n_models]
    config = FitConfig(lr=3e-3, save_every=save_every, log_every=3, progress=False, resample_at=RESAMPLE_AT)
    return models, fit(models, Batches(kill_at), config, n_tokens=n_steps * BATCH, out=out)


def die_at_change(n: int) -> None:
    """Make the n-th change of the file system in this process its last moment: it does not happen."""
    left = [n]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return function(*arguments, **options)

        return wrapped

    for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))


def kill_everywhere(out: Path) -> None:
    """For n = 0, 1, 2 ...: die at the n-th change, run again to the end; stop when a run survives.

    The last directory is then that of an uninterrupted run. Prints how many there are.
    """
    # Drawing takes longer than everything else together.
    fit_module.write_report = lambda path, *_: Path(path).write_bytes(b"report")  # type: ignore[attr-defined]
    run(out / "warm", n_steps=1)  # imports and caches, once for all the children
    shutil.rmtree(out / "warm")
    n, survived = 0, False
    while not survived:
        for attempt in range(2):
            child = os.fork()
            if child == 0:
                if attempt == 0:
                    die_at_change(n)
                run(out / str(n), save_every=4, n_steps=6, n_models=1)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            survived = attempt == 0 and status == 0
            if survived:
                break
            assert status == (9 if attempt == 0 else 0), f"change {n}, attempt {attempt}: exit status {status}"
        n += 1
    print(n)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, mode = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "whole"
    if mode == "every":
        kill_everywhere(target)
    else:
        run(target, kill_at=int(sys.argv[3]) if mode == "step" else None)
