"""Extract: run a backbone over texts or images and keep the activations at its hook points on disk."""

import dataclasses
import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from saekit.backbones import Backbone, ImageTokens, TextBackbone, TextWindows, load_backbone
from saekit.errors import ConfigError, InputError
from saekit.files import readable_bytes, to_tagged
from saekit.inputs import Document, ImageInput, SkipLog, SourceSize, measure_source, read_documents, read_images
from saekit.jobs.estimate import Estimate, check_disk, estimate
from saekit.jobs.example_stream import CHUNK_BATCHES, Chunk, ExampleStream, cut_into_chunks
from saekit.jobs.outliers import Batch, NormFilter
from saekit.store import ActivationStore, StoreWriter
from saekit.store.background import read_ahead
from saekit.store.format import rows_bytes
from saekit.store.writer import full_disk_explained

CHUNKS_AHEAD = 2
logger = logging.getLogger(__name__)

Inputs = str | Path | Iterable[Any]


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Run a model over texts or images and store its activations.

    A killed run goes on where it stopped when the same command is given again, and ends with the same bytes.
    """

    model: str
    """The backbone: "smollm2" or "dinov2" (embedded), a hub id, a folder, a .gguf file, or timm:NAME."""
    source: str
    """Texts: a file, folder, JSONL or Parquet. Images: a folder. Either: a save_to_disk folder or hf:owner/name."""
    out: Path
    """Directory of the store; new, empty, or an extraction to go on with."""
    hook_points: tuple[str, ...]
    """Where to read activations, e.g. layers.15 layers.15.mlp; list them with: saekit hooks MODEL"""
    n_tokens: int | None = None
    """Stop after the example that reaches this many rows, left out ones counted (default: the whole source)."""
    text: TextWindows = field(default_factory=TextWindows)
    """How documents become windows of tokens (language models)."""
    images: ImageTokens = field(default_factory=ImageTokens)
    """Which tokens of an image are kept (vision models)."""
    storage_dtype: str = "bf16"
    """Type of the rows on disk: bf16, fp16 or fp32."""
    dtype: str | None = None
    """Type to run the model in: float32, bfloat16 or float16 (default: float32 on a CPU, the checkpoint's on a GPU)."""
    device: str | None = None
    """cpu or cuda (default: cuda where there is one)."""
    max_norm_ratio: float = 10.0
    """Leave out tokens whose activation norm is above this many times the median: attention sinks, which would rule
    every mean and scale. They are counted in the store; 0 keeps them."""
    sample_seed: int | None = None
    """Take the documents or images in a random order drawn from this seed, so that --n-tokens is a fair sample of a
    sorted source. Texts are all read first (default: the source's own order)."""
    batch_size: int = 32
    """Windows or images in one forward."""
    shard_rows: int = 65_536
    """Rows after which a shard is closed; what a kill can cost."""
    text_field: str = "text"
    """Field of the text in JSONL, Parquet and datasets."""
    label_field: str = "label"
    """Field of the label in JSONL, Parquet and datasets."""
    glob: str | None = None
    """Only files whose path below the source matches, e.g. "*.md"."""
    verify: bool = False
    """Read the finished store again and compare every byte with its checksums."""


def extract(
    backbone: Backbone,
    inputs: Inputs,
    *,
    hook_points: Sequence[str],
    out: str | Path,
    n_tokens: int | None = None,
    options: TextWindows | ImageTokens | None = None,
    storage_dtype: str = "bf16",
    max_norm_ratio: float = 10.0,
    sample_seed: int | None = None,
    batch_size: int = 32,
    shard_rows: int = 65_536,
    skipped: SkipLog | None = None,
    size: SourceSize | None = None,
    source: str | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Store the activations of the kept tokens of `inputs` at `hook_points`, and the examples themselves, in `out`.

    `inputs` is a path or `hf:` name, or an iterable of `Document` or `str` (language models) or of `ImageInput` or
    Pillow images (vision models). `skipped` is the log that the reader of such an iterable adds to, `size` what is
    known of its length (for the estimate), `source` what to call it in the store.

    Rows with a norm above `max_norm_ratio` times the median are left out (`NormFilter`; 0 keeps all); `sample_seed`
    shuffles the inputs first, for a fair sample of `n_tokens` rows.

    Goes on with an extraction in `out` that was begun with the same settings and inputs; a finished one is opened.
    Raises `ConfigError`, `HookPointError`, `InputError` (no usable input; NaN or overflowing activations), and
    `StoreError` (other settings or a changed source in `out`, a disk that is too small or full).
    """
    if batch_size < 1 or shard_rows < 1 or (n_tokens is not None and n_tokens < 1):
        raise ConfigError(f"batch_size={batch_size}, shard_rows={shard_rows}, n_tokens={n_tokens}; all are at least 1.")
    if not (max_norm_ratio == 0 or max_norm_ratio > 1):
        raise ConfigError(f"max_norm_ratio={max_norm_ratio}; it is above 1, or 0 to keep every token.")
    options = options or backbone.default_options()
    log = SkipLog() if skipped is None else skipped
    if size is None and isinstance(inputs, (str, Path)):
        size = measure_source(inputs, images=backbone.kind == "image")
    plan = {
        "backbone": backbone.describe(),
        "options": to_tagged(options),
        "source": source or (str(inputs) if isinstance(inputs, (str, Path)) else "in memory"),
        # A source that has grown since is another source: an extraction of the old one is not gone on with.
        "source_size": None if size is None else dataclasses.asdict(size),
        "n_tokens": n_tokens,
        "max_norm_ratio": max_norm_ratio,
        "sample_seed": sample_seed,
        "batch_size": batch_size,
        "shard_rows": shard_rows,
        "device": backbone.device.type,
    }
    if isinstance(hook_points, str):
        raise ConfigError(f"hook_points={hook_points!r} is a string, not a list. Type: hook_points=[{hook_points!r}]")
    # Two spellings of one place (layers.1, layers.1:output) are stored once, under the first.
    spellings: dict[str, str] = {}
    for point in hook_points:
        spellings.setdefault(backbone.resolve(point), point)
    widths = {point: backbone.width(point) for point in spellings.values()}
    layout = backbone.layout_for(options)
    with (
        full_disk_explained(Path(out)),
        StoreWriter(out, hook_points=widths, dtype=storage_dtype, layout=layout, plan=plan) as writer,
    ):
        if writer.is_complete:
            logger.info("%s is complete already.", out)
            writer.finish()
            return ActivationStore.open(out)
        items, known_size = _open_inputs(backbone.kind, inputs, log, size)
        if sample_seed is not None:
            items = list(items)
            random.Random(sample_seed).shuffle(items)
        state = writer.last_state()
        stream = ExampleStream(backbone, items, options, log, state)
        norms = NormFilter(max_norm_ratio, state and state["norms"]) if max_norm_ratio else None
        chunks = cut_into_chunks(
            stream,
            batch_size=batch_size,
            chunk_batches=CHUNK_BATCHES[backbone.kind],
            shard_rows=shard_rows,
            n_rows_done=state["n_rows"] if state else 0,
            n_tokens=n_tokens,
        )
        vocabulary = backbone.token_bytes() if isinstance(backbone, TextBackbone) else None
        with closing(read_ahead(chunks, CHUNKS_AHEAD)) as ahead:
            first = next(ahead)
            if writer.n_done == 0 and not first.examples:
                raise InputError(f"No usable example in the source{_reasons(stream.skipped)}.")
            expected = estimate(first.examples, known_size, n_tokens, widths, storage_dtype, vocabulary)
            check_disk(expected, writer.n_rows_done, Path(out))
            with _progress(backbone.kind, expected, writer, progress) as bar:
                for chunk in itertools.chain([first], ahead):
                    _write_chunk(backbone, writer, chunk, batch_size, options, norms, bar)
        dropped = norms.report() if norms else None
        writer.finish(skipped=stream.skipped.to_json(), vocabulary=vocabulary, dropped=dropped)
    if skipped is not None:
        skipped.merge(stream.skipped)
    return ActivationStore.open(out)


def run(config: ExtractConfig) -> Path:
    """`saekit extract`: load the model, extract, and print where the store is and what is in it."""
    backbone = load_backbone(config.model, config.dtype, config.device)
    is_text, log = backbone.kind == "text", SkipLog()
    if is_text:
        fields = {"text_field": config.text_field, "label_field": config.label_field}
        inputs: Iterator[Any] = read_documents(config.source, glob=config.glob, skipped=log, **fields)
    else:
        inputs = read_images(config.source, label_field=config.label_field, glob=config.glob, skipped=log)
    store = extract(
        backbone,
        inputs,
        hook_points=config.hook_points,
        out=config.out,
        n_tokens=config.n_tokens,
        options=config.text if is_text else config.images,
        storage_dtype=config.storage_dtype,
        batch_size=config.batch_size,
        shard_rows=config.shard_rows,
        skipped=log,
        size=measure_source(config.source, glob=config.glob, images=not is_text),
        source=config.source,
        max_norm_ratio=config.max_norm_ratio,
        sample_seed=config.sample_seed,
    )
    if config.verify:
        ActivationStore.open(config.out, verify=True)
    print(describe_store(store))
    return store.path


def describe_store(store: ActivationStore) -> str:
    """The path of a store and the numbers that matter, for people."""
    widths = ", ".join(f"{point} [{store.d_model(point)}]" for point in store.hook_points)
    n_bytes = sum(rows_bytes(store.n_rows, store.d_model(point), store.meta["dtype"]) for point in store.hook_points)
    lines = [
        f"{store.path}: {store.n_rows:,} rows of {store.n_examples:,} examples at {widths}, {readable_bytes(n_bytes)} "
        f"in {store.meta['dtype']}, {store.meta['skipped']['count']} skipped"
    ]
    for id, reason in store.meta["skipped"]["first"][:5]:
        lines.append(f"  skipped {id}: {reason}")
    for point, described in store.meta["hook_points"].items():
        norms = described["norms"]
        if norms["n_high"]:
            positions = ", ".join(f"{position} ({n:,})" for position, n in norms["high_by_position"][:5])
            lines.append(
                f"  {point}: {norms['n_high']:,} rows have more than 10 times the median norm of {norms['median']:.4g} "
                f"(up to {norms['largest']:.4g}), at positions {positions}: attention sinks; drop them before training"
            )
    if (dropped := store.meta.get("dropped")) and dropped["n_rows"]:
        positions = ", ".join(f"{position} ({n:,})" for position, n in dropped["by_position"][:5])
        lines.append(
            f"  left out {dropped['n_rows']:,} rows above {dropped['max_norm_ratio']:g} times the median norm, at "
            f"positions {positions}"
        )
    return "\n".join(lines)


def _open_inputs(kind: str, inputs: Inputs, log: SkipLog, size: SourceSize | None) -> tuple[Iterable[Any], SourceSize]:
    """The inputs as documents or images, and what is known of their number and length."""
    if isinstance(inputs, (str, Path)):
        return (read_documents if kind == "text" else read_images)(inputs, skipped=log), size or SourceSize()
    if size is not None or not isinstance(inputs, Sequence):
        return _wrap(kind, inputs), size or SourceSize()
    items = list(_wrap(kind, inputs))
    n_bytes = sum(len(item.text.encode("utf-8", "surrogatepass")) for item in items) if kind == "text" else None
    return items, SourceSize(n_inputs=len(items), n_bytes=n_bytes)


def _wrap(kind: str, inputs: Iterable[Any]) -> Iterator[Any]:
    """Plain strings and Pillow images get their number as an id."""
    for number, item in enumerate(inputs):
        if isinstance(item, (Document, ImageInput)):
            yield item
        elif kind == "text" and isinstance(item, str):
            yield Document(id=f"{number:06d}", text=item)
        elif kind == "image" and hasattr(item, "convert"):
            yield ImageInput(id=f"{number:06d}", load=item)
        else:
            wanted = "a str or a Document" if kind == "text" else "a Pillow image or an ImageInput"
            raise InputError(f"Input {number} is a {type(item).__name__}; expected {wanted}.")


def _write_chunk(
    backbone: Backbone,
    writer: StoreWriter,
    chunk: Chunk,
    batch_size: int,
    options: TextWindows | ImageTokens,
    norms: NormFilter | None,
    bar: "tqdm[Any]",
) -> None:
    examples = chunk.examples
    if examples:
        shard = writer.shard or writer.begin_shard()
        pack = isinstance(options, TextWindows) and options.pack
        points = list(writer.hook_points)
        batches: Iterable[Batch] = _counted(
            backbone.activations(examples, points, batch_size, pack=pack), bar, backbone
        )
        if norms:
            examples, batches = norms.apply(examples, list(batches))
        starts = shard.append(examples)
        for indices, rows in batches:
            shard.put(rows, np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices]))
    if chunk.ends_shard:
        writer.end_shard({**chunk.state, "norms": norms.state() if norms else None})


def _counted(batches: Iterator[Batch], bar: "tqdm[Any]", backbone: Backbone) -> Iterator[Batch]:
    for indices, rows in batches:
        yield indices, rows
        bar.update(len(next(iter(rows.values()))) if backbone.kind == "text" else len(indices))


def _progress(kind: str, expected: Estimate, writer: StoreWriter, shown: bool) -> "tqdm[Any]":
    is_text = kind == "text"
    return tqdm(
        total=expected.n_rows if is_text else expected.n_examples,
        initial=writer.n_rows_done if is_text else writer.n_examples_done,
        desc="extract",
        unit=" tokens" if is_text else " images",
        unit_scale=is_text,
        disable=not shown,
    )


def _reasons(skipped: SkipLog) -> str:
    reasons = ", ".join(f"{reason} ({n})" for reason, n in skipped.reasons.items())
    return f": skipped {reasons}" if reasons else ""
