"""OpenAI's sparse_autoencoder: one `.pt` file of tensors, TopK on layer-normed activations or ReLU on raw ones."""

from typing import Any

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, one_of, tensors_of

_SHAPES = {"pre_bias": "d", "encoder.weight": "F d", "latent_bias": "F", "decoder.weight": "d F"}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def matches(source: Source) -> bool:
    return isinstance(source.pickled, dict) and {"pre_bias", "latent_bias"} <= set(source.pickled)


def read(source: Source, options: ReadOptions) -> Dictionary:
    value: Any = source.pickled
    where = str(source.pickle)
    tensors = tensors_of(value, source.path)
    check(where, tensors, _SHAPES, ignored=_STATISTICS)
    kind = one_of(where, "activation", value.get("activation", "ReLU"), ["ReLU", "TopK"])
    state = value.get("activation_state_dict") or {}
    notes: tuple[str, ...] = ()
    if kind == "TopK":
        after = state.get("postact_fn", "ReLU")
        if after != "ReLU":
            raise CheckpointError(f"{where} applies {after} after TopK, so latents may be negative; saekit's are not.")
        k = state.get("k", options.k)
        if k is None:
            raise CheckpointError(f"{where} does not say k. Give k.")
        activation = Activation(kind="topk", k=int(k))
        notes = ("Carried the layer norm of each token as token_norm='layer_norm'.",)
    else:
        activation = Activation(kind="relu")
    layer = source.number_after("layer_")
    return Dictionary(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["latent_bias"],
        W_dec=tensors["decoder.weight"].T,
        b_dec=tensors["pre_bias"],
        activation=activation,
        subtracts_b_dec=True,
        token_norm="layer_norm" if kind == "TopK" else "none",
        hook_point=f"layers.{layer}" if layer is not None and "resid_post_mlp" in source.label else None,
        source={"format": "openai", "name": source.label},
        notes=notes,
    )
