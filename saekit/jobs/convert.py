"""`saekit convert`: from any format of sparse autoencoders to another, or to the hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional, arg

from saekit.autoencoders import SparseAutoencoder, Transcoder
from saekit.errors import CheckpointError, ConfigError, InputError
from saekit.files import read_json
from saekit.interop import load_sae, push_to_hub, save_as
from saekit.interop.formats import OURS, check_readable, check_writable


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a sparse autoencoder: from any format that saekit reads, to one that it writes.

    Reads: saekit, saelens (6 and before), sparsify, dictionary_learning, gemma_scope, llama_scope, llamascopium,
    openai, qwen_scope, saev, overcomplete, prisma. Writes: saekit, saelens, saelens-legacy, sparsify,
    dictionary_learning, dictionary_learning-new.
    """

    source: Positional[str]
    """A folder or file, or a repository on the Hugging Face hub (owner/name)."""
    to: str = OURS
    """Format to write."""
    out: Path | None = None
    """Folder to write."""
    push: str | None = None
    """Upload to this repository on the hub (owner/name), with a model card; in place of --out or beside it."""
    from_format: Annotated[str, arg(name="from")] = "auto"
    """Format of the source; by default found from its files."""
    subfolder: str | None = None
    """Folder or file within the source."""
    revision: str | None = None
    """Branch, tag or commit of the source on the hub."""
    k: int | None = None
    """Latents per row, for sources that do not say it."""
    threshold: float | None = None
    """Threshold of a BatchTopK, for sources that do not say it."""
    input_scale: float | None = None
    """What activations were multiplied by before the autoencoder, for sources that do not say it."""
    input_mean: Path | None = None
    """A .npy file of what was subtracted from them before that."""
    metrics: Path | None = None
    """A metrics.json for the model card; by default the one beside the source."""
    path_in_repo: str | None = None
    """Folder of the repository to push to; by default its root."""
    public: bool = False
    """Make the repository public if it is made; otherwise only you see it."""
    license: str | None = None
    """License to state in the model card."""

    def __post_init__(self) -> None:
        if self.out is None and self.push is None:
            raise ConfigError("Nothing to write: give --out FOLDER, or --push OWNER/NAME.")
        check_readable(self.from_format)
        check_writable(self.to)


def run(config: ConvertConfig) -> Path | None:
    """Convert, and print what was folded or carried and where the result is."""
    sae = load_sae(
        config.source,
        format=config.from_format,
        subfolder=config.subfolder,
        revision=config.revision,
        k=config.k,
        threshold=config.threshold,
        input_mean=None if config.input_mean is None else _vector(config.input_mean),
        input_scale=config.input_scale,
    )
    notes = list(((sae.provenance or {}).get("source") or {}).get("notes") or [])
    path, address, written = convert(
        sae,
        to=config.to,
        out=config.out,
        push=config.push,
        path_in_repo=config.path_in_repo,
        public=config.public,
        license=config.license,
        metrics=_beside(config.source, "metrics.json") if config.metrics is None else _json(config.metrics),
        recipe=_beside(config.source, "run.json"),
    )
    print(sae)
    for note in (*notes, *written):
        print(f"- {note}")
    for place in (path, address):
        if place is not None:
            print(place)
    return path


def convert(
    sae: SparseAutoencoder | Transcoder,
    *,
    to: str,
    out: Path | None = None,
    push: str | None = None,
    path_in_repo: str | None = None,
    public: bool = False,
    license: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[Path | None, str | None, tuple[str, ...]]:
    """Write `sae` to the folder `out`, upload it to `push`, or both; returns both places and what was folded.

    Raises as `save_as` and `push_to_hub` do.
    """
    notes: tuple[str, ...] = ()
    address = None
    if out is not None:
        notes = save_as(sae, out, format=to)
    if push is not None:
        address = push_to_hub(
            sae,
            push,
            format=to,
            path_in_repo=path_in_repo,
            private=not public,
            license=license,
            metrics=metrics,
            recipe=recipe,
        )
    return out, address, notes


def _beside(source: str, name: str) -> dict[str, Any] | None:
    """The JSON of that name in the source's folder or in the one above, where a training run keeps it."""
    folder = Path(source)
    for place in (folder, folder.parent):
        if folder.is_dir() and (place / name).is_file():
            return _json(place / name)
    return None


def _vector(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a .npy file of numbers ({error}).") from None


def _json(path: Path) -> dict[str, Any]:
    value = read_json(path, CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return value
