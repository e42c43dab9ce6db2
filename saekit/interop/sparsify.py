"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`, TopK autoencoders and transcoders."""

import re
from pathlib import Path

from safetensors.torch import save_file

from saekit.errors import CheckpointError, ConfigError
from saekit.files import write_json
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def matches(source: Source) -> bool:
    return source.has(CONFIG, WEIGHTS)


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.folder)
    config = source.config(CONFIG)
    activation = config.get("activation", "topk")  # files from before the field are all TopK
    if activation != "topk" or config.get("signed"):
        what = "signed TopK" if config.get("signed") else activation
        raise CheckpointError(f"{where} is a {what} of sparsify, which saekit cannot hold; it can read TopK.")
    d_in = config.get("d_in")
    n_latents = config.get("num_latents") or (d_in or 0) * config.get("expansion_factor", 32)
    transcodes, has_skip = bool(config.get("transcode")), bool(config.get("skip_connection"))
    tensors = load_safetensors(source.folder / WEIGHTS)
    shapes = {"encoder.weight": "F d", "encoder.bias": "F", "W_dec": "F d", "b_dec": "d"}
    if has_skip:
        shapes["W_skip"] = "d d"
    check(where, tensors, shapes, sizes={"d": d_in, "F": n_latents or None}, said_by=CONFIG)
    dictionary = Dictionary(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=Activation(kind="topk", k=int(config.get("k", 32))),
        subtracts_b_dec=not transcodes,
        is_transcoder=transcodes or has_skip,
        W_skip=tensors["W_skip"].T if has_skip else None,
        hook_point=None if transcodes else _hook_point(source),
        source={"format": "sparsify", "hookpoint": source.path.name},
    )
    return dictionary.subtracting_b_dec(False) if dictionary.is_transcoder else dictionary


def write(dictionary: Dictionary, folder: Path) -> Dictionary:
    """Write a TopK; `ConfigError` for all that sparsify does not have."""
    problems = []
    if dictionary.activation.kind != "topk":
        problems.append(f"its latents are TopK, not {dictionary.activation.kind}")
    if dictionary.token_norm != "none":
        problems.append(f"it does not normalise each token by itself ({dictionary.token_norm})")
    if dictionary.d_in != dictionary.d_out:
        problems.append(f"its transcoders have one width, not {dictionary.d_in} and {dictionary.d_out}")
    if problems:
        raise ConfigError(f"sparsify cannot hold this dictionary: {'; '.join(problems)}.")
    has_skip = dictionary.W_skip is not None
    config = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.d_sae // dictionary.d_in),
        "normalize_decoder": False,
        "num_latents": dictionary.d_sae,
        "k": dictionary.activation.k,
        "multi_topk": False,
        "skip_connection": has_skip,
        "transcode": dictionary.is_transcoder,
        "d_in": dictionary.d_in,
    }
    tensors = {
        "encoder.weight": dictionary.W_enc.T,
        "encoder.bias": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
    write_json(folder / CONFIG, config)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return dictionary


def _hook_point(source: Source) -> str | None:
    """The folder's name, a module path of the model; where it is `layers.6` or `layers.6.mlp` it is ours too."""
    return source.folder.name if re.fullmatch(r"layers\.\d+(\.mlp)?", source.folder.name) else None
