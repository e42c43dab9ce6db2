"""FVU at equal L0, after the same tokens, against SAELens: L1, TopK, BatchTopK and JumpReLU on a store's activations.

    scripts/setup_peers.sh .peers
    python scripts/bench_quality.py --store runs/demo-text/store --peers .peers

Both sides see the same normalised rows in the same order, start from the same dictionary, and take the same number of
Adam steps with the same learning rate, decay, clipping and penalty warm-up. Each trains at several values of its
sparsity setting and is measured, by its inference path, on rows of documents that neither has seen; log FVU is
interpolated in log L0 where the two ranges overlap. TopK has the same L0 on both sides; so has BatchTopK, which is
measured as it is trained, by the largest of batches of 1,024 rows, because SAELens' threshold needs hundreds of steps
to come up from 0. Prints JSON and a table; one thread, CPU.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

import saekit as sk
from saekit.jobs.train import held_out_rows
from saekit.training import measure_health

VALUES: dict[str, tuple[float, ...]] = {
    "L1": (4.0, 9.0),
    "TopK": (32,),
    "BatchTopK": (32,),
    "JumpReLU": (0.6, 2.0),
}
THRESHOLD, BANDWIDTH = 0.2, 0.1


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    store: Path
    """An activation store."""
    peers: Path = Path(".peers")
    """The peers' environment (scripts/setup_peers.sh)."""
    methods: tuple[str, ...] = tuple(VALUES)
    """Which of L1, TopK, BatchTopK, JumpReLU."""
    d_sae: int = 2304
    """Number of latents."""
    n_tokens: int = 102_400
    """Rows to train on."""
    batch_size: int = 1024
    """Rows per step."""
    lr: float = 1e-3
    """Learning rate of both sides, falling to 0 over the last fifth."""
    n_held_out: int = 8192
    """Rows to measure on."""
    seed: int = 0
    """Draws the rows, their order and the first dictionary."""


def main(config: QualityConfig) -> None:
    torch.set_num_threads(1)
    rows, held_out = load_rows(config)
    generator = torch.Generator().manual_seed(config.seed)
    W_dec = torch.nn.functional.normalize(torch.randn(config.d_sae, rows.shape[1], generator=generator), dim=1)
    shared = {"lr": config.lr, "lr_decay": 0.2, "sparsity_warmup": 0.05, "batch_size": config.batch_size}
    shared |= {"threshold": THRESHOLD, "bandwidth": BANDWIDTH}
    runs = [{"method": method, "value": value, **shared} for method in config.methods for value in VALUES[method]]
    theirs = run_peer(config, runs, rows, held_out, W_dec)
    ours = [run_ours(run, rows, held_out, W_dec) for run in runs]
    table = [compare(method, *_of(method, runs, ours, theirs)) for method in config.methods]
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    print(json.dumps({"settings": settings, "runs": runs, "saekit": ours, "sae_lens": theirs, "table": table}))
    print(f"{'':<10} {'L0':>7} {'saekit FVU':>11} {'SAELens FVU':>12} {'relative':>9}")
    for row in table:
        relative = f"{row['relative']:>+9.2%}"
        print(f"{row['method']:<10} {row['l0']:>7.1f} {row['saekit']:>11.4f} {row['sae_lens']:>12.4f} {relative}")


def load_rows(config: QualityConfig) -> tuple[Tensor, Tensor]:
    """Rows to train on, shuffled, and rows of held-out documents, all centred and scaled to E||x||^2 = d_in."""
    store = sk.ActivationStore.open(config.store)
    point = store.hook_points[0]
    is_out = held_out_rows(store, 0.05)
    random = np.random.default_rng(config.seed)
    pool = np.flatnonzero(~is_out)
    chosen = np.concatenate([random.permutation(pool) for _ in range(-(-config.n_tokens // len(pool)))])
    mean, mean_squared_norm = store.moments(point)
    everything = store.rows(0, store.n_rows, point).float()
    everything -= torch.as_tensor(mean, dtype=torch.float32)
    everything *= (store.d_model(point) / mean_squared_norm) ** 0.5
    apart = random.permutation(np.flatnonzero(is_out))[: config.n_held_out]
    return everything[torch.from_numpy(chosen[: config.n_tokens])], everything[torch.from_numpy(apart)]


def run_ours(run: dict[str, Any], rows: Tensor, held_out: Tensor, W_dec: Tensor) -> dict[str, float]:
    """L0 and FVU on held-out rows of an autoencoder that saekit has trained."""
    is_penalised = run["method"] in ("L1", "JumpReLU")
    init_norm = 0.1 if is_penalised else 1.0
    sae = sk.SparseAutoencoder(
        sk.SparseAutoencoderConfig(
            d_in=rows.shape[1],
            d_sae=len(W_dec),
            sparsity=sparsity_of(run),
            decoder_norm="free" if is_penalised else "unit",
            decoder_init_norm=init_norm,
            dead_after_tokens=1000 * run["batch_size"],
        )
    )
    with torch.no_grad():
        sae.W_dec.copy_(W_dec * init_norm)
        sae.W_enc_T.copy_(sae.W_dec)
    fit_config = sk.FitConfig(
        lr=run["lr"],
        lr_warmup_fraction=0.0,
        lr_decay_fraction=run["lr_decay"],
        sparsity_warmup_fraction=run["sparsity_warmup"],
        progress=False,
    )
    n_steps = len(rows) // run["batch_size"]
    sk.fit([sae], rows[: n_steps * run["batch_size"]].split(run["batch_size"]), fit_config)
    if run["method"] == "BatchTopK":
        return measure_by_batch(sae, held_out, int(run["value"]))
    health = measure_health(sae, held_out.split(1024))
    return {"l0": health.l0, "fvu": health.fvu}


@torch.no_grad()
def measure_by_batch(sae: sk.SparseAutoencoder, held_out: Tensor, k: int) -> dict[str, float]:
    """L0 and FVU with the k * 1024 largest pre-activations of each 1,024 rows, as in training."""
    error, n_active = 0.0, 0
    for x in held_out.split(1024):
        pre_acts = (sae.normalize(x) - sae.b_dec) @ sae.W_enc + sae.b_enc
        threshold = pre_acts.flatten().topk(k * len(x)).values[-1].clamp_min(0)
        latents = torch.where(pre_acts >= threshold, pre_acts, 0)
        error += float((sae.decode(latents) - x).square().sum())
        n_active += int((latents > 0).sum())
    total = float((held_out - held_out.mean(0)).square().sum())
    return {"l0": n_active / len(held_out), "fvu": error / total}


def sparsity_of(run: dict[str, Any]) -> Any:
    value = run["value"]
    if run["method"] == "L1":
        return sk.Relu(l1=value)
    if run["method"] == "JumpReLU":
        return sk.JumpRelu(weight=value, threshold=run["threshold"], bandwidth=run["bandwidth"], threshold_lr=1.0)
    return sk.TopK(k=int(value)) if run["method"] == "TopK" else sk.BatchTopK(k=int(value))


def run_peer(
    config: QualityConfig, runs: Sequence[dict[str, Any]], rows: Tensor, held_out: Tensor, W_dec: Tensor
) -> list[dict[str, float]]:
    """The same runs by SAELens, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, tensor in (("rows", rows), ("held_out", held_out), ("W_dec", W_dec)):
            files[name] = str(Path(folder) / f"{name}.npy")
            np.save(files[name], tensor.numpy())
        worker = Path(__file__).with_name("bench_quality_worker.py")
        done = subprocess.run(
            [config.peers / "bin/python", worker],
            input=json.dumps({**files, "runs": list(runs)}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def compare(method: str, ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Both FVUs at the middle of the L0 that both reach."""
    low = max(min(point["l0"] for point in side) for side in (ours, theirs))
    high = min(max(point["l0"] for point in side) for side in (ours, theirs))
    l0 = math.sqrt(low * high)
    mine, peer = (fvu_at(l0, side) for side in (ours, theirs))
    return {"method": method, "l0": l0, "saekit": mine, "sae_lens": peer, "relative": mine / peer - 1}


def fvu_at(l0: float, points: Sequence[dict[str, float]]) -> float:
    """log FVU is taken as linear in log L0 between neighbouring points, and beyond the last ones."""
    if len(points) == 1:
        return points[0]["fvu"]
    by_l0 = sorted((math.log(point["l0"]), math.log(point["fvu"])) for point in points)
    x = math.log(l0)
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(by_l0) if x <= pair[1][0]), (by_l0[-2], by_l0[-1]))
    return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def _of(method: str, runs: Sequence[dict[str, Any]], *results: Sequence[dict[str, float]]) -> list[Any]:
    return [[result[i] for i, run in enumerate(runs) if run["method"] == method] for result in results]


if __name__ == "__main__":
    main(tyro.cli(QualityConfig))
