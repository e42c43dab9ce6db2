"""Benchmark of the feature index: what building it costs beside encoding, and how fast it answers.

    python scripts/bench_index.py                 both parts, about 3 minutes on 2 CPU cores
    python scripts/bench_index.py build --n-rows 2000000 --d-in 768 --d-sae 24576 --device cuda
    python scripts/bench_index.py pages --n-rows 4000000 --l0 64

`build` makes a store of random rows around sparse directions and a TopK autoencoder of matching shape, then times,
alternating, (a) one pass that reads the store and encodes every row, and (b) the whole of `build_index`, without a
logit lens. Target: b / a at most 1.5. `pages` builds an index of synthetic codes (log-normal densities, two features on
half of all rows) and times opening it in a fresh process and whole feature pages: top examples, quantile bands,
histogram, neighbours, co-activation, tokens, labels. Targets: open below 1 s, a page at most 20 ms at the median, the
densest below 200 ms. Files go to a temporary folder that is removed.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from saekit import ActivationStore, FeatureIndex, SparseAutoencoder, SparseAutoencoderConfig, TopK, build_index
from saekit.index.builder import IndexPlan, RowCodes, write_index
from saekit.store import Example, ExampleTableWriter, StoreWriter, TokenLayout

WINDOW = 129
VOCABULARY = [b"<bos>", *(f" t{i}".encode() for i in range(1, 49_152))]
LABELS = ("business", "entertainment", "politics", "sport", "tech")
LAYOUT = TokenLayout(content="token", prefix=("bos",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("build", "pages", "both"), default="both")
    parser.add_argument("--n-rows", type=int, help="default: 100,000 for build, 2,000,000 for pages")
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, help="default: 9,216 for build, 24,576 for pages")
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_index-", dir=options.folder))
    try:
        if options.part in ("build", "both"):
            bench_build(folder, options.n_rows or 100_000, options.d_sae or 9_216, options)
        if options.part in ("pages", "both"):
            bench_pages(folder, options.n_rows or 2_000_000, options.d_sae or 24_576, options)
    finally:
        shutil.rmtree(folder)


def bench_build(folder: Path, n_rows: int, d_sae: int, options: argparse.Namespace) -> None:
    store = make_store(folder / "acts", n_rows, options.d_in)
    config = SparseAutoencoderConfig(d_in=options.d_in, d_sae=d_sae, sparsity=TopK(k=options.l0))
    sae = SparseAutoencoder(config).to(options.device)
    wall: dict[str, list[float]] = {"encode": [], "build": []}
    cpu: dict[str, list[float]] = {"encode": [], "build": []}
    encode_pass(sae, store, 8192)
    for repeat in range(options.repeats):
        out = folder / f"index-{repeat}"
        work = {
            "encode": lambda: encode_pass(sae, store, store.n_rows),
            "build": lambda out=out: build_index(sae, store, out, progress=False),
        }
        for name, do in work.items():
            before = time.process_time()
            wall[name].append(seconds(do))
            cpu[name].append(time.process_time() - before)
            print(f"  {name}: {wall[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU", file=sys.stderr)
        shutil.rmtree(out)
    print(f"build: {store.n_rows:,} rows of {options.d_in} -> {d_sae:,}, L0 {options.l0}, {options.device}")
    for name, times in (("wall", wall), ("CPU", cpu)):
        encode, build = statistics.median(times["encode"]), statistics.median(times["build"])
        print(
            f"  {name} time: read and encode {encode:.1f} s, build_index {build:.1f} s, ratio {build / encode:.2f} "
            "(target at most 1.5; CPU time is the steadier one on a busy machine)"
        )


def encode_pass(sae: SparseAutoencoder, store: ActivationStore, stop: int) -> None:
    """Read and encode; the codes come back to the CPU, as any use of them needs."""
    for start in range(0, stop, 4096):
        codes = sae.encode_sparse(store.rows(start, min(start + 4096, stop)).to(sae.W_dec.device))
        for part in codes:
            part.cpu()


def bench_pages(folder: Path, n_rows: int, d_sae: int, options: argparse.Namespace) -> None:
    index_path = folder / "pages"
    taken = seconds(lambda: build_synthetic(index_path, n_rows, d_sae, options.l0))
    index = FeatureIndex.open(index_path)
    size = sum(path.stat().st_size for path in index_path.rglob("*") if path.is_file())
    print(f"pages: {index!r}: {size / 1e9:.2f} GB, {size / index.n_codes:.1f} B per code, built in {taken:.0f} s")
    program = (
        "import sys, time; start = time.perf_counter(); from saekit.index import FeatureIndex; "
        f"index = FeatureIndex.open({str(index_path)!r}); index.stats['density'].max(); index.top_examples(5); "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(5)
    ]
    opens = [float(run.stdout.split()[0]) for run in runs]
    assert all(run.stdout.split()[1] == "False" for run in runs), "reading an index imported torch"
    print(f"  open, in a new process, with imports and a first page: median {statistics.median(opens):.2f} s")
    generator = np.random.default_rng(0)
    alive = np.flatnonzero(index.stats["n_active"])
    mass = index.stats["n_active"][alive]
    groups = {
        "uniform over features": generator.choice(alive, 400, replace=False),
        "weighted by firings": generator.choice(alive, 200, replace=False, p=mass / mass.sum()),
        "the 10 densest": np.argsort(-index.stats["n_active"])[:10],
    }
    for feature in alive:
        index.activations(int(feature))
    for name, features in groups.items():
        before = time.process_time()
        times = [1e3 * seconds(lambda feature=feature: page(index, int(feature))) for feature in features]
        cpu = 1e3 * (time.process_time() - before) / len(features)
        p50, p95 = np.percentile(times, [50, 95])
        firings = int(np.median(index.stats["n_active"][features]))
        print(
            f"  page, {name} (median {firings:,} firings): p50 {p50:.1f}, p95 {p95:.1f}, max {max(times):.0f} ms; "
            f"mean CPU time {cpu:.1f} ms"
        )
    tokens = generator.integers(1, len(VOCABULARY), 50)
    labels = [1e3 * seconds(lambda label=label: index.features_of_label(label)) for label in LABELS]
    times = [1e3 * seconds(lambda token=token: index.features_of_token(int(token))) for token in tokens]
    frequent = 1e3 * seconds(lambda: index.features_of_token(1))
    print(
        f"  features of a token: p50 {np.median(times):.1f} ms, of the most frequent one {frequent:.0f} ms; "
        f"of a label: p50 {np.median(labels):.1f} ms"
    )


def page(index: FeatureIndex, feature: int) -> None:
    """Everything that a feature's page shows."""
    index.top_examples(feature, 20)
    index.quantile_examples(feature, 5, 5)
    index.histogram(feature)
    index.quantiles(feature)
    index.neighbours(feature)
    index.coactivating(feature)
    index.top_tokens(feature)
    index.label_lift(feature)


def build_synthetic(path: Path, n_rows: int, d_sae: int, l0: int) -> None:
    table = path.with_name("examples")
    with ExampleTableWriter(table, kind="text", layout=LAYOUT) as writer:
        writer.append(windows(n_rows))
        writer.finish(VOCABULARY)
    density = np.sort(np.random.default_rng(0).lognormal(0.0, 1.5, d_sae))[::-1]
    cumulative = np.cumsum(density / density.sum())

    def encode(start: int, stop: int) -> Iterator[RowCodes]:
        for at in range(start, stop, 16_384):
            yield synthetic_codes(at, min(at + 16_384, stop), cumulative, l0)

    def dictionary() -> dict[str, np.ndarray]:
        from saekit.index.dictionary import dictionary_arrays

        torch.manual_seed(0)
        return dictionary_arrays(torch.randn(64, d_sae), torch.randn(d_sae, 64))

    write_index(path, IndexPlan(d_sae=d_sae, examples=table, meta={}), encode, dictionary, progress=False)
    shutil.rmtree(table)


def synthetic_codes(start: int, stop: int, cumulative: np.ndarray, l0: int) -> RowCodes:
    generator = np.random.default_rng(start)
    n = stop - start
    features = np.searchsorted(cumulative, generator.random((n, l0), dtype=np.float32)).clip(max=len(cumulative) - 1)
    # Two features that fire on half of all rows, as real dictionaries have.
    for feature in (0, 1):
        is_on = generator.random(n) < 0.5
        features[is_on, feature] = feature
    features.sort(axis=1)
    is_first = np.concatenate([np.ones((n, 1), dtype=bool), features[:, 1:] != features[:, :-1]], axis=1)
    values = generator.gamma(2.0, 1.0, size=int(is_first.sum())).astype(np.float32) + 1e-3
    return RowCodes(is_first.sum(1), features[is_first], values)


def windows(n_rows: int) -> Iterator[Example]:
    """Windows of 128 kept tokens, two per document, token ids with Zipf's frequencies."""
    generator = np.random.default_rng(1)
    for number, first in enumerate(range(0, n_rows, WINDOW - 1)):
        n = min(WINDOW - 1, n_rows - first)
        ids = np.minimum(generator.zipf(1.2, n + 1), len(VOCABULARY) - 1).astype(np.int32)
        ids[0] = 0
        document = number // 2
        kept = np.arange(1, n + 1, dtype=np.int32)
        yield Example(document=f"d{document}", kept=kept, label=LABELS[document % 5], token_ids=ids)


def make_store(path: Path, n_rows: int, d_in: int) -> ActivationStore:
    """Rows that are sums of 8 of 4 x d_in directions, in bf16."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=generator), dim=1)
    plan = {"backbone": {"spec": "synthetic", "kind": "text"}, "options": {"kind": "TextWindows"}}
    per_shard = 512
    with StoreWriter(path, hook_points={"layers.0": d_in}, dtype="bf16", layout=LAYOUT, plan=plan) as writer:
        examples = list(windows(n_rows))
        for start in range(0, len(examples), per_shard):
            part = examples[start : start + per_shard]
            n = sum(len(example.kept) for example in part)
            which = torch.randint(len(directions), (n, 8), generator=generator)
            strength = torch.rand(n, 8, 1, generator=generator)
            writer.write_shard(part, {"layers.0": (directions[which] * strength).sum(1)})
        writer.finish(vocabulary=VOCABULARY)
    return ActivationStore.open(path)


def seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
