"""Reading a Transformers checkpoint from a folder, the hub or a GGUF file, with errors that say what to do."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from saekit.backbones.base import Location, resolve_dtype
from saekit.backbones.third_party import import_transformers
from saekit.errors import BackboneError, MissingExtraError, require

# Weights that a forward up to the residual stream and the logits does not use, so that they may be missing.
_UNUSED = ("pooler", "mask_token", "position_ids")


def folder_location(path: Path) -> Location:
    """A local folder. Raises `BackboneError` when it holds no Transformers checkpoint."""
    if not (path / "config.json").is_file():
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise BackboneError(
            f"{path} has no config.json, so it is not a Transformers checkpoint (it holds {found}). A timm checkpoint "
            f"is named 'timm:ARCHITECTURE@/path/to.safetensors', a GGUF one by its file."
        )
    return {"pretrained_model_name_or_path": str(path)}


def gguf_location(path: Path) -> Location:
    """A GGUF file. Raises `BackboneError` when it is not there or is something else."""
    if not path.is_file():
        raise BackboneError(f"{path} does not exist.")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BackboneError(f"{path} is not a GGUF file.")
    transformers = import_transformers()
    require("gguf", "lm")
    require("accelerate", "lm")
    location: Location = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # Hook points need plain linear layers, not ones that keep their weights packed.
    if packing := getattr(transformers, "GgufConfig", None):
        location["quantization_config"] = packing(dequantize=True)
    return location


def tokenizer_location(location: Location) -> Location:
    """The part of a location that a config or tokenizer takes."""
    return {name: value for name, value in location.items() if name != "quantization_config"}


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars that Transformers draws while it reads a checkpoint, and its list of unused weights."""
    logging = import_transformers().utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def hub_location(name: str) -> Location:
    """A hub id, from the local hub cache alone when the hub cannot be reached."""
    return {"pretrained_model_name_or_path": name, "local_files_only": not hub_is_reachable()}


def hub_is_reachable() -> bool:
    """Whether the hub's name resolves. Asking takes a moment; Transformers would retry for half a minute."""
    import_transformers()
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def load_config(location: Location, spec: str) -> Any:
    """The checkpoint's config; raises `BackboneError` when it cannot be read."""
    transformers = import_transformers()
    try:
        return transformers.AutoConfig.from_pretrained(**tokenizer_location(location))
    except (OSError, ValueError, KeyError) as cause:
        raise BackboneError(f"{spec}: its config cannot be read: {first_line(cause)}") from None


def load_model(
    auto_class: str, location: Location, spec: str, config: Any, dtype: str | None, device: torch.device
) -> nn.Module:
    """The model in the dtype asked for, on `device`.

    Raises `BackboneError` when the weights cannot be read, or when some that matter are missing from the checkpoint:
    Transformers would leave those at random values.
    """
    auto = getattr(import_transformers(), auto_class)
    computed = resolve_dtype(dtype, _stored_dtype(config), device)
    try:
        with quietly():
            model, report = auto.from_pretrained(**location, dtype=computed, output_loading_info=True)
    except Exception as cause:  # Transformers, safetensors and gguf each raise their own kinds
        raise unreadable(f"{spec}: its weights cannot be read", cause, "lm") from None
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in _UNUSED))
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        raise BackboneError(
            f"{spec}: {len(missing) + len(mismatched)} weights of {type(model).__name__} are missing from the "
            f"checkpoint or have another shape, first {', '.join([*missing, *mismatched][:4])}."
        )
    return model.to(device)


def load_tokenizer(location: Location, spec: str) -> Any:
    """The checkpoint's tokenizer; raises `BackboneError` when there is none."""
    transformers = import_transformers()
    try:
        with quietly():
            return transformers.AutoTokenizer.from_pretrained(**tokenizer_location(location))
    except Exception as cause:
        raise unreadable(f"{spec}: its tokenizer cannot be read", cause, "lm") from None


def unreadable(what: str, cause: Exception, extra: str) -> BackboneError | MissingExtraError:
    """The error to raise when a library could not read part of a checkpoint, perhaps for want of another library."""
    if isinstance(cause, ImportError):
        return MissingExtraError(f"{what}: {first_line(cause)} Type: pip install 'saekit[{extra}]'")
    return BackboneError(f"{what}: {first_line(cause)}")


def first_line(cause: BaseException) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _stored_dtype(config: Any) -> torch.dtype:
    stored = getattr(config, "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored.removeprefix("torch."), None)
    return stored if isinstance(stored, torch.dtype) else torch.float32
