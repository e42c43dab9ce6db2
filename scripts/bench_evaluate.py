"""Benchmark of evaluation: what measuring stored rows costs beside encoding them, and splicing beside its parts.

    python scripts/bench_evaluate.py              both parts at 768 -> 24,576, about 3 minutes on 2 CPU cores
    python scripts/bench_evaluate.py stored --n-rows 1000000 --device cuda
    python scripts/bench_evaluate.py spliced --d-sae 9216

`stored` times, alternating on the same rows, (a) one pass that reads the store and encodes every row and (b) the
reconstruction pass of `evaluate`; then the whole of `evaluate` with its defaults (baselines, probes, geometry, bits),
whose time beyond (b) does not grow with the rows once there are more than its samples need. Target: at 1M rows all of
it costs at most 1.3 encode passes, (fixed + b * 1M) / (a * 1M). `spliced` times, alternating, a bare forward pass of
the embedded language model over windows of 256 tokens, encoding and decoding the same rows, and the forward pass with
the reconstruction spliced in. Target: at most 1.25 times the sum of the first two. Times on a CPU are processor time,
which other processes disturb less. Files go to a temporary folder.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from saekit import ActivationStore, SparseAutoencoder, SparseAutoencoderConfig, TopK, evaluate, load_backbone, splice
from saekit.evaluation import CountingReconstruction, measure_reconstruction
from saekit.evaluation.rows import row_chunks
from saekit.store import Example, StoreWriter, TokenLayout

WINDOW = 129
LABELS = ("business", "entertainment", "politics", "sport", "tech")
LAYOUT = TokenLayout(content="token", prefix=("bos",))
PLAN = {"backbone": {"spec": "synthetic", "kind": "text"}, "options": {"kind": "TextWindows"}}
HELD_OUT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("stored", "spliced", "both"), default="both")
    parser.add_argument("--n-rows", type=int, default=73_728, help="rows of the store, half of them held out")
    parser.add_argument("--n-timed", type=int, default=16_384, help="rows of the passes that are compared")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=24_576)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_evaluate-", dir=options.folder))
    try:
        if options.part in ("stored", "both"):
            bench_stored(folder, options)
        if options.part in ("spliced", "both"):
            bench_spliced(options)
    finally:
        shutil.rmtree(folder)


def bench_stored(folder: Path, options: argparse.Namespace) -> None:
    store = make_store(folder / "acts", options.n_rows, options.d_in)
    sae = make_sae(options.d_in, options)
    (point,) = store.hook_points
    mean, squared_norm = store.moments()
    sae.set_input_moments_(torch.from_numpy(mean).float().to(options.device), squared_norm)
    offsets = np.asarray(store.examples.row_offsets)
    examples = np.arange(int(np.searchsorted(offsets, options.n_timed)))
    n_timed = int(offsets[len(examples)])
    centre = torch.from_numpy(mean).to(options.device)

    def encode() -> None:
        for rows, _ in row_chunks(store, examples, point, device=options.device):
            sae.encode_sparse(rows.float())

    def measure() -> None:
        measure_reconstruction(
            CountingReconstruction(sae), row_chunks(store, examples, point, device=options.device), centre
        )

    encode_s, measure_s = alternate({"encode": encode, "measure": measure}, options.repeats, options.device).values()
    ratio = measure_s / encode_s
    print(
        f"stored: {n_timed:,} rows of {options.d_in} -> {options.d_sae:,}, L0 {options.l0}, {options.device}: read and "
        f"encode {encode_s:.1f} s, reconstruction pass {measure_s:.1f} s, ratio {ratio:.2f}"
    )
    start = seconds(options.device)
    found = evaluate(sae, store, held_out_share=HELD_OUT)
    whole = seconds(options.device) - start
    n_measured = found.data["n_tokens"]
    per_row, encode_row = measure_s / n_timed, encode_s / n_timed
    fixed = max(0.0, whole - per_row * n_measured)
    print(
        f"  evaluate on {n_measured:,} rows: {whole:.1f} s, of which {fixed:.1f} s do not grow with the rows; at "
        f"1,000,000 rows {(fixed + per_row * 1e6) / (encode_row * 1e6):.2f} encode passes (target at most 1.3)"
    )


def bench_spliced(options: argparse.Namespace) -> None:
    lm = load_backbone("smollm2", device=options.device)
    sae = make_sae(lm.d_model, options)
    ids = np.random.default_rng(0).integers(100, 40_000, (4, 256)).astype(np.int32)
    examples = [Example(document="", token_ids=row, kept=np.arange(1, 256, dtype=np.int32)) for row in ids]
    point, kept = "layers.15", [example.kept for example in examples]
    ((_, captured),) = lm.activations(examples, [point], batch_size=4)
    x = captured[point].float()
    reconstruct = CountingReconstruction(sae)

    def spliced() -> None:
        with splice(lm, point, reconstruct, positions=kept):
            lm.logits(examples)

    work: dict[str, Callable[[], object]] = {
        "forward": lambda: lm.logits(examples),
        "encode + decode": lambda: sae.decode_sparse(sae.encode_sparse(x)),
        "spliced": spliced,
    }
    forward, both, together = alternate(work, max(3, options.repeats), options.device).values()
    print(
        f"spliced: {len(x):,} tokens of smollm2 at {point}, {lm.d_model} -> {options.d_sae:,}: forward {forward:.2f} "
        f"s, encode and decode {both:.2f} s, spliced forward {together:.2f} s, ratio {together / (forward + both):.2f} "
        "(target at most 1.25)"
    )


def alternate(work: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """The median seconds of each, taken in turns after one warm-up: of the processor on a CPU, else of the clock."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, do in work.items():
            start, clock = seconds(device), time.perf_counter()
            do()
            if repeat:
                taken[name].append(seconds(device) - start)
                print(f"  {name}: {taken[name][-1]:.2f} s, wall {time.perf_counter() - clock:.2f} s", file=sys.stderr)
    return {name: statistics.median(times) for name, times in taken.items()}


def seconds(device: str) -> float:
    """Processor time of this process, which other processes disturb less; with CUDA, the clock after all work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def make_sae(d_in: int, options: argparse.Namespace) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(d_in=d_in, d_sae=options.d_sae, sparsity=TopK(k=options.l0))
    return SparseAutoencoder(config).to(options.device).requires_grad_(False)


def make_store(path: Path, n_rows: int, d_in: int) -> ActivationStore:
    """Random sparse sums of random directions, in documents of 128 rows with a label each."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in), dim=1)
    kept = np.arange(1, WINDOW, dtype=np.int32)
    with StoreWriter(path, hook_points={"layers.6": d_in}, dtype="bf16", layout=LAYOUT, plan=PLAN) as writer:
        number = 0
        while number * 128 < n_rows:
            examples = [
                Example(
                    document=f"d{number + i}",
                    label=LABELS[(number + i) % 5],
                    token_ids=random.integers(1, 1000, WINDOW).astype(np.int32),
                    kept=kept,
                )
                for i in range(64)
            ]
            chosen = torch.from_numpy(random.integers(0, 4 * d_in, (64 * 128, 24)))
            rows = (directions[chosen] * torch.rand(64 * 128, 24, 1) * 4).sum(1) + 0.3
            writer.write_shard(examples, {"layers.6": rows.bfloat16()})
            number += 64
        writer.finish()
    return ActivationStore.open(path)


if __name__ == "__main__":
    main()
