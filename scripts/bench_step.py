"""Time of one training step of a sparse autoencoder, in units of its one dense encoder product.

    python scripts/bench_step.py --d-in 768 --d-sae 24576

A step is what `fit` does: forward, backward, projection, clipping, Adam and renormalisation. The encoder product alone,
the step with the sparse kernel and the step by dense products are interleaved, and the least of each is taken. Weights
are fresh, biases set so that ReLU has the asked-for L0. CPU, 2 threads, under a minute when nothing else runs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import tyro

import saekit as sk
from saekit.training.optim import make_optimizer, take_step


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    d_in: int = 768
    """Width of the activations."""
    d_sae: int = 24576
    """Number of latents."""
    batch_size: int = 1024
    """Rows per step."""
    l0: float = 60
    """Active latents per row of the ReLU autoencoder."""
    k: int = 32
    """Active latents per row of the TopK autoencoder."""
    dead: float = 0.0
    """Share of dead latents of the TopK autoencoder, on which AuxK works."""
    rounds: int = 6
    """Times everything is run."""
    n_threads: int = 2
    """Threads torch uses."""
    cpu_time: bool = False
    """Measure the process's CPU time, for a machine that others keep busy; only fair with `--n-threads 1`."""
    device: str = "cpu"
    """Where to measure: cpu or cuda."""
    skip_dense: bool = False
    """Leave out dense autograd, which takes most of the time."""


def run(config: BenchConfig) -> dict[str, float]:
    torch.set_num_threads(config.n_threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch_size, config.d_in, generator=generator).to(config.device)
    product = torch.empty(config.batch_size, config.d_sae, device=config.device)
    W = torch.randn(config.d_sae, config.d_in, generator=generator).to(config.device)
    tasks: dict[str, Callable[[], object]] = {"encoder product": lambda: torch.mm(x, W.T, out=product)}
    for kernel in ("sparse",) if config.skip_dense else ("sparse", "dense"):
        for name, sparsity, norm in (
            ("relu, unit decoder", sk.Relu(), "unit"),
            ("relu, free decoder", sk.Relu(), "free"),
            ("topk", sk.TopK(k=config.k), "unit"),
        ):
            tasks[f"{name}, {kernel}"] = make_step(config, sparsity, norm, kernel, x)
    encoder = make_autoencoder(config, sk.TopK(k=config.k), "unit", "auto", x)
    tasks["encode_sparse, topk"] = lambda: encoder.encode_sparse(x)
    relu_encoder = make_autoencoder(config, sk.Relu(), "unit", "auto", x)
    tasks["encode_sparse, relu"] = lambda: relu_encoder.encode_sparse(x)
    clock = time.process_time if config.cpu_time else time.perf_counter
    least = dict.fromkeys(tasks, float("inf"))
    for _ in range(config.rounds):
        for name, task in tasks.items():
            started = clock()
            task()
            if x.is_cuda:
                torch.cuda.synchronize()
            least[name] = min(least[name], clock() - started)
    return least


def make_step(
    config: BenchConfig, sparsity: sk.Relu | sk.TopK, norm: str, kernel: str, x: torch.Tensor
) -> Callable[[], None]:
    sae = make_autoencoder(config, sparsity, norm, kernel, x)
    # No learning rate: the L0 that was set up stays. The arithmetic is the same.
    optimizer = make_optimizer(sae, 0.0, (0.9, 0.999))

    def step() -> None:
        sae.training_loss(x).total.backward()
        take_step(sae, optimizer, 0.0, 1.0)

    return step


def make_autoencoder(
    config: BenchConfig, sparsity: sk.Relu | sk.TopK, norm: str, kernel: str, x: torch.Tensor
) -> sk.SparseAutoencoder:
    sae = sk.SparseAutoencoder(
        sk.SparseAutoencoderConfig(
            d_in=config.d_in, d_sae=config.d_sae, sparsity=sparsity, decoder_norm=norm, kernel=kernel
        )
    ).to(x.device)
    with torch.no_grad():
        if isinstance(sparsity, sk.Relu):
            sample = (x[:64] @ sae.W_enc).flatten()
            n_active = int(config.l0 / config.d_sae * sample.numel())
            sae.b_enc -= sample.topk(n_active).values[-1]
        else:
            sae.tokens_since_fired[: int(config.dead * config.d_sae)] = 1 << 40
            sae.b_enc[: int(config.dead * config.d_sae)] = -1.0
    return sae


def main() -> None:
    config = tyro.cli(BenchConfig, description=__doc__)
    least = run(config)
    unit = least["encoder product"]
    for name, seconds in least.items():
        print(f"{name:28s} {seconds * 1e3:8.1f} ms {seconds / unit:6.2f} x")
    print(json.dumps({"config": asdict(config), "ms": {name: round(s * 1e3, 2) for name, s in least.items()}}))


if __name__ == "__main__":
    main()
