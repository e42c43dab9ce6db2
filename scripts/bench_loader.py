"""Speed of the shuffled loader from the page cache, beside a plain sequential copy of as many bytes.

    python scripts/bench_loader.py                       # 1,000,000 rows x 768, bf16: 1.5 GB of disk, about a minute
    python scripts/bench_loader.py --rows 20000000 --cold

Loader and copy take turns (shuffled batches, then memcpy, and so on), so that both see the same machine. Target: at
least 500,000 rows/s at width 768 bf16 on 2 cores. `--cold` drops the store from the page cache before every turn of the
loader, which then reads from the disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from saekit.store import ActivationStore, Example, StoreWriter, TokenLayout

WINDOW = 256


def make_store(path: Path, n_rows: int, width: int, shard_rows: int) -> ActivationStore:
    """A store of random bf16 rows, in windows of 256 tokens."""
    layout = TokenLayout(content="token")
    kept = np.arange(WINDOW, dtype=np.int32)
    with StoreWriter(path, hook_points={"layers.0": width}, dtype="bf16", layout=layout, plan={}) as writer:
        rows = torch.randn(shard_rows, width).bfloat16()
        for first in range(0, n_rows, shard_rows):
            part = [Example(document=str(first + i), kept=kept, token_ids=kept) for i in range(0, shard_rows, WINDOW)]
            writer.write_shard(part, {"layers.0": rows})
        writer.finish()
    return ActivationStore.open(path)


def drop_from_cache(path: Path) -> None:
    os.sync()
    for file in path.glob("shards/*/*.bin"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy_sequentially(store: ActivationStore, n_rows: int, buffer: np.ndarray) -> float:
    """Seconds to copy the first `n_rows` rows into `buffer`, again and again over itself."""
    begin, left = time.perf_counter(), n_rows
    while left > 0:
        for shard in store.maps("layers.0"):
            for first in range(0, len(shard), len(buffer)):
                part = shard[first : first + min(len(buffer), left)]
                np.copyto(buffer[: len(part)], part)
                left -= len(part)
                if left <= 0:
                    return time.perf_counter() - begin
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows-per-turn", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        store = make_store(Path(folder) / "store", arguments.rows, arguments.width, 65_536)
        buffer = np.empty((arguments.batch_size, arguments.width), dtype=np.uint16)
        copy_sequentially(store, store.n_rows, buffer)
        speeds, copies, cpu_speeds = [], [], []
        with store.batches(arguments.batch_size, seed=0) as loader:
            next(loader)
            for _ in range(arguments.turns):
                if arguments.cold:
                    drop_from_cache(store.path)
                begin, begin_cpu, n = time.perf_counter(), time.process_time(), 0
                while n < arguments.rows_per_turn:
                    n += len(next(loader))
                speeds.append(n / (time.perf_counter() - begin))
                cpu_speeds.append(n / (time.process_time() - begin_cpu))
                loader.close()
                copies.append(n / copy_sequentially(store, n, buffer))
                print(f"shuffled {speeds[-1]:,.0f} rows/s, copied {copies[-1]:,.0f} rows/s", file=sys.stderr)
        speed, copy = statistics.median(speeds), statistics.median(copies)
        gigabytes = speed * arguments.width * 2 / 1e9
        print(
            f"loader: {speed:,.0f} rows/s ({gigabytes:.2f} GB/s), width {arguments.width} bf16, batch "
            f"{arguments.batch_size}, {store.n_rows:,} rows, {'cold' if arguments.cold else 'page cache'}; sequential "
            f"copy {copy:,.0f} rows/s; ratio {speed / copy:.2f}; "
            f"{statistics.median(cpu_speeds):,.0f} rows per CPU second"
        )


if __name__ == "__main__":
    main()
