"""Open any published sparse autoencoder, and write ours for others to open."""

import os
import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from saekit.autoencoders import Autoencoder, SparseAutoencoder, load_autoencoder
from saekit.autoencoders.transcoder import Transcoder
from saekit.errors import CheckpointError, ConfigError
from saekit.files import sync_directory
from saekit.interop.dictionary import Dictionary, from_autoencoder, to_autoencoder
from saekit.interop.formats import FORMATS, OURS, check_readable, detect, writer
from saekit.interop.hub import fetch
from saekit.interop.options import ReadOptions


def load_sae(
    path_or_hub_id: str | Path,
    *,
    format: str = "auto",
    subfolder: str | None = None,
    revision: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    input_mean: Tensor | None = None,
    input_scale: float | None = None,
) -> SparseAutoencoder | Transcoder:
    """A sparse autoencoder from a folder, a file or the Hugging Face hub, ours or of any format of `FORMATS`.

    `"owner/name"` with `subfolder` (a folder or a file) and `revision` is the hub's. Latents and reconstructions are
    those of the project that wrote the file; how its normalisation was folded or carried stands in
    `sae.provenance["source"]["notes"]`. No code in a file is run. `k`, `threshold` and `input_scale` are for formats
    that leave those out, and their errors ask for them; `input_mean [d_in]` and `input_scale` are what activations were
    normalised with, x_n = (x - input_mean) * input_scale, where no file says so (saev).

    Raises `CheckpointError` for files that are missing, damaged, need pickle, lack tensors or contradict their config
    (all problems at once), and `ConfigError` for options that do not fit.
    """
    check_readable(format)
    source = fetch(path_or_hub_id, subfolder=subfolder, revision=revision)
    if format in ("auto", OURS) and (checkpoint := _our_checkpoint(source.path)) is not None:
        if any(option is not None for option in (k, threshold, input_mean, input_scale)):
            raise ConfigError(
                f"{checkpoint} is saekit's own checkpoint: it holds k, threshold and normalisation itself."
            )
        return _sparse(load_autoencoder(checkpoint), checkpoint)
    if format == OURS:
        raise CheckpointError(f"{source.path} is not a checkpoint of saekit: it has no meta.json.")
    if input_scale is not None and not 0 < input_scale < float("inf"):
        raise ConfigError(f"input_scale={input_scale} is not a finite number above 0.")
    name = detect(source) if format == "auto" else format
    options = ReadOptions(k=k, threshold=threshold, input_scale=input_scale)
    dictionary: Dictionary = FORMATS[name].load().read(source, options)
    scale = None if dictionary.took_input_scale else input_scale
    return to_autoencoder(dictionary, input_mean=input_mean, input_scale=scale)


def save_as(sae: SparseAutoencoder | Transcoder, path: str | Path, *, format: str) -> tuple[str, ...]:
    """Write `sae` to the folder `path` in a format of `WRITABLE`, or our own; returns what was folded, as sentences.

    The input's mean and scale are folded into the weights, exactly in real numbers: latents stay as they are. A kill or
    an error at any moment leaves no `path`, or the whole one.

    Raises `ConfigError` for what the format cannot express and when `path` holds something already.
    """
    path = Path(path)
    if format == OURS:
        sae.save(path)
        return ()
    write = writer(format)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder. Choose another path.")
    dictionary = from_autoencoder(sae)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        written = write(dictionary, temporary)
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        temporary.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        os.rename(temporary, path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written.notes


def _our_checkpoint(path: Path) -> Path | None:
    """The checkpoint of ours that `path` is, or, of a finished training run with one model, holds."""
    if (path / "meta.json").is_file():
        return path
    found = sorted(meta.parent for meta in path.glob("checkpoint*/meta.json")) if path.is_dir() else []
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} checkpoints; name one of them: {', '.join(map(str, found))}.")
    return found[0] if found else None


def _sparse(model: Autoencoder, path: Path) -> SparseAutoencoder | Transcoder:
    if not isinstance(model, (SparseAutoencoder, Transcoder)):
        raise CheckpointError(f"{path} holds a {type(model).__name__}; type load_autoencoder({str(path)!r}) for that.")
    return model
