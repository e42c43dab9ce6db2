"""Whether the encoder products of several autoencoders on one batch are faster stacked into one product.

    python scripts/bench_stacked.py

One product per model against one product with weights that already lie one behind the other, and with weights that are
copied together first. CPU time of one thread, the least of some turns; `--device cuda` measures the clock instead.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    d_in: int = 768
    """Width of the activations."""
    d_saes: tuple[int, ...] = (1024, 8192, 24576)
    """Latents of each model; one line per number."""
    n_models: int = 8
    """Models on the same batch."""
    batch_size: int = 1024
    """Rows."""
    rounds: int = 3
    """Turns."""
    device: str = "cpu"
    """cpu or cuda."""


def main() -> None:
    config = tyro.cli(BenchConfig, description=__doc__)
    is_cuda = config.device != "cpu"
    torch.set_num_threads(1)
    clock = time.perf_counter if is_cuda else time.process_time
    x = torch.randn(config.batch_size, config.d_in, device=config.device)
    print("| d_sae | one by one | stacked | copied together, then stacked |\n|---|---|---|---|")
    for d_sae in config.d_saes:
        weights = torch.randn(config.n_models, d_sae, config.d_in, device=config.device)
        apart = [w.clone() for w in weights]
        outs = [x.new_empty(config.batch_size, d_sae) for _ in apart]
        out = x.new_empty(config.batch_size, config.n_models * d_sae)

        def one_by_one(apart: list = apart, outs: list = outs) -> None:
            for w, one in zip(apart, outs, strict=True):
                torch.mm(x, w.T, out=one)

        def stacked(weights: torch.Tensor = weights, out: torch.Tensor = out) -> None:
            torch.mm(x, weights.flatten(0, 1).T, out=out)

        def copied(apart: list = apart, out: torch.Tensor = out) -> None:
            torch.mm(x, torch.cat(apart).T, out=out)

        tasks: list[Callable[[], None]] = [one_by_one, stacked, copied]
        least = [float("inf")] * len(tasks)
        for _ in range(config.rounds):
            for i, task in enumerate(tasks):
                started = clock()
                task()
                if is_cuda:
                    torch.cuda.synchronize()
                least[i] = min(least[i], clock() - started)
        print(f"| {d_sae} | {least[0] * 1e3:.1f} ms | {least[1] / least[0]:.2f} x | {least[2] / least[0]:.2f} x |")


if __name__ == "__main__":
    main()
