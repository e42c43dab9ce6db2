"""What one autoencoder of a sweep costs beside one trained alone: `fit` with eight models and with one, in turns.

    python scripts/bench_sweep.py                        # 768 -> 6144, batch 1024, about 3 minutes on 2 CPU cores
    python scripts/bench_sweep.py --d-sae 24576 --batch-size 8192 --device cuda

A sweep reads, shuffles and moves each batch once for all its models. The rows come shuffled out of a store in the page
cache, as in training; the models are TopK with eight values of k around the single one's. Target: at most 0.85 of the
single run's time per autoencoder on a CPU, 0.6 on a GPU.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from saekit import FitConfig, SparseAutoencoder, SparseAutoencoderConfig, TokenLayout, TopK, fit
from saekit.store import ActivationStore, Example, StoreWriter

POINTS = (16, 20, 24, 28, 32, 40, 48, 64)
ALONE = 32


def make_store(path: Path, n_rows: int, d_in: int) -> ActivationStore:
    """Rows around 2,048 sparse directions, one example of 256 rows after the other."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2048, d_in, generator=generator), dim=1)
    layout = TokenLayout(content="token", prefix=())
    with StoreWriter(path, hook_points={"layers.0": d_in}, dtype="bf16", layout=layout, plan={}) as writer:
        for start in range(0, n_rows, 4096):
            is_on = torch.rand(4096, 2048, generator=generator) < 0.01
            rows = (is_on * torch.rand(4096, 2048, generator=generator) * 3) @ directions
            ids = torch.arange(256, dtype=torch.int32).numpy()
            examples = [
                Example(document=f"{start + 256 * i}", label=None, token_ids=ids, start=0, kept=ids) for i in range(16)
            ]
            writer.write_shard(examples, {"layers.0": rows})
        writer.finish()
    return ActivationStore.open(path)


def seconds_per_model(store: ActivationStore, ks: tuple[int, ...], options: argparse.Namespace) -> tuple[float, float]:
    """(wall, processor) seconds of one `fit` of an autoencoder for each k, divided by their number."""
    mean, mean_squared_norm = store.moments()
    saes = []
    for k in ks:
        config = SparseAutoencoderConfig(d_in=store.d_model(), d_sae=options.d_sae, sparsity=TopK(k=k))
        sae = SparseAutoencoder(config).to(options.device)
        sae.set_input_moments_(torch.as_tensor(mean, dtype=torch.float32).to(options.device), mean_squared_norm)
        saes.append(sae)
    n_tokens = options.steps * options.batch_size
    with store.batches(options.batch_size, n_tokens=n_tokens, device=options.device) as batches:
        wall, processor = time.perf_counter(), time.process_time()
        fit(saes, batches, FitConfig(progress=False), n_tokens=n_tokens)
        if options.device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - wall, time.process_time() - processor
    return took[0] / len(ks), took[1] / len(ks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", 16_384, options.d_in)
        seconds_per_model(store, (ALONE,), options)
        ratios = []
        for turn in range(options.turns):
            alone, alone_cpu = seconds_per_model(store, (ALONE,), options)
            swept, swept_cpu = seconds_per_model(store, POINTS, options)
            ratios.append((swept / alone, swept_cpu / alone_cpu))
            print(f"turn {turn}: alone {alone:.2f} s, in a sweep of {len(POINTS)} {swept:.2f} s each", flush=True)
    wall, processor = (statistics.median(values) for values in zip(*ratios, strict=True))
    print(f"per autoencoder, sweep over alone: {wall:.2f} in wall time, {processor:.2f} in processor time")


if __name__ == "__main__":
    main()
