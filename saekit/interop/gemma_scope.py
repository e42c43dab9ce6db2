"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`): JumpReLU autoencoders, and the second's transcoders."""

import re

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_npz, load_safetensors, one_of

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
# How a release's folder or name says which activations of a layer, and our hook point for them.
_HOOKS = {r"resid_post|-res\b": "", r"mlp_out|-mlp\b": ".mlp"}


def matches(source: Source) -> bool:
    return source.path.name in (FIRST, SECOND) or source.has(FIRST) or source.has(SECOND)


def read(source: Source, options: ReadOptions) -> Dictionary:
    is_first = source.path.name == FIRST or source.has(FIRST)
    path = source.folder / (FIRST if is_first else SECOND)
    tensors = load_npz(path) if is_first else load_safetensors(path)
    # Some files of the first release write w_enc, as all of the second do.
    tensors = {{"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name): tensor for name, tensor in tensors.items()}
    config = source.config(CONFIG) if source.has(CONFIG) else {}
    one_of(f"{source.folder}/{CONFIG}", "architecture", config.get("architecture", "jump_relu"), ["jump_relu"])
    if "W_dec" in tensors and tensors["W_dec"].dim() == 3:
        raise CheckpointError(f"{path} is a cross-layer transcoder: its W_dec writes to several layers.")
    hooks = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    has_skip = "affine_skip_connection" in tensors
    is_transcoder = has_skip or hooks[0] != hooks[1] or "transcoder" in source.label
    out = "o" if is_transcoder else "d"
    check(
        str(path),
        tensors,
        {"W_enc": "d F", "W_dec": f"F {out}", "b_enc": "F", "b_dec": out, "threshold": "F"},
        optional={"affine_skip_connection": "d o", "scaling_factor": "F"},
    )
    has_factor = "scaling_factor" in tensors  # of each latent in the reconstruction, from fine-tuning
    dictionary = Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"] * tensors["scaling_factor"][:, None] if has_factor else tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=Activation(kind="jumprelu", threshold=tensors["threshold"]),
        subtracts_b_dec=False,
        is_transcoder=is_transcoder,
        W_skip=tensors.get("affine_skip_connection"),
        hook_point=None if is_transcoder else _hook_point(source),
        source={"format": "gemma_scope", "name": source.label, **config},
    )
    if "embedding" in source.label:
        # These were trained on bare rows of the embedding; the stream of the model holds them times sqrt(d).
        root = float(dictionary.d_in) ** 0.5
        dictionary = dictionary.scaled_input(1 / root).noting(
            f"Folded the embedding's factor sqrt(d_in) = {root:.6g}: it takes what the model's stream holds."
        )
    return dictionary


def _hook_point(source: Source) -> str | None:
    layer = source.number_after("layer_")
    for words, suffix in _HOOKS.items():
        if layer is not None and re.search(words, source.label):
            return f"layers.{layer}{suffix}"
    return None
