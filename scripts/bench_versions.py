"""Step time of the wide sparse autoencoder in two versions of saekit, in one run, in turns.

    python scripts/bench_versions.py --before COMMIT --after COMMIT [--paths saekit/autoencoders/base.py ...]

Both are taken out of git into a temporary folder; with `--paths`, "after" is "before" with only these files of the
later commit, so that one change can be told from others. Each round measures both in a fresh process, in alternating
order; the least step of each counts. CPU, 2 threads, about two minutes when nothing else runs.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

WORKER = """
import sys, time, torch, saekit as sk
d_in, d_sae, n_rows, n_steps = map(int, sys.argv[1:])
torch.set_num_threads(2)
x = torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(0))
sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=d_in, d_sae=d_sae, sparsity=sk.TopK(k=32)))
optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
times = []
for _ in range(n_steps + 2):
    began = time.perf_counter()
    optimizer.zero_grad()
    sae.training_loss(x).total.backward()
    sae.project_gradients_()
    optimizer.step()
    sae.project_()
    times.append(time.perf_counter() - began)
print(min(times[2:]))
"""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Two commits and the size to measure at."""

    before: str
    """The earlier commit."""
    after: str
    """The later commit."""
    paths: tuple[str, ...] = ()
    """Take only these files and folders from the later commit, everything else from the earlier one."""
    d_in: int = 768
    """Width of the activations."""
    d_sae: int = 24576
    """Number of latents."""
    batch_size: int = 1024
    """Rows per step."""
    steps: int = 5
    """Steps measured in each process."""
    rounds: int = 4
    """Processes of each version."""


def unpack(commit: str, folder: Path, paths: tuple[str, ...] = ()) -> None:
    """The tree of `commit`, or some of its paths, in `folder`."""
    archive = subprocess.run(["git", "archive", commit, "--", *paths], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def run(config: BenchConfig) -> dict[str, float]:
    """Seconds per step of both and their ratio."""
    times: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as root:
        trees = {name: Path(root) / name for name in times}
        unpack(config.before, trees["before"], ("saekit",))
        unpack(config.before if config.paths else config.after, trees["after"], ("saekit",))
        if config.paths:
            unpack(config.after, trees["after"], config.paths)
        sizes = [str(n) for n in (config.d_in, config.d_sae, config.batch_size, config.steps)]
        for i in range(config.rounds):
            for name in sorted(times, reverse=i % 2 == 0):
                environment = {**os.environ, "PYTHONPATH": str(trees[name])}
                command = [sys.executable, "-c", WORKER, *sizes]
                done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
                times[name].append(float(done.stdout))
    least = {f"{name}_s": min(values) for name, values in times.items()}
    spread = max(statistics.median(values) / min(values) for values in times.values())
    return {**least, "after/before": least["after_s"] / least["before_s"], "median/least": spread}


if __name__ == "__main__":
    print(json.dumps(run(tyro.cli(BenchConfig)), indent=2))
