"""Qwen Scope: `layerN.sae.pt`, a TopK on the residual stream after block N."""

import re

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, tensors_of

_SHAPES = {"W_enc": "F d", "b_enc": "F", "W_dec": "d F", "b_dec": "d"}


def matches(source: Source) -> bool:
    name = source.pickle.name if source.pickle else ""
    return re.fullmatch(r"layer\d+\.sae\.pt", name) is not None and isinstance(source.pickled, dict)


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.pickle)
    tensors = tensors_of(source.pickled, source.path)
    sizes = check(where, tensors, _SHAPES)
    if sizes["F"] < sizes["d"]:
        raise CheckpointError(
            f"{where}: W_enc [d_sae d_in] has fewer latents than features, {sizes}; is it transposed?"
        )
    found = re.search(r"L0_(\d+)", f"{source.label}/{source.path.absolute()}")  # k is in the repository's name alone
    k = options.k if options.k is not None else int(found[1]) if found else None
    if k is None:
        raise CheckpointError(f"{where} does not say k, and no folder above it is named ...-L0_<k>. Give k.")
    layer = re.search(r"layer(\d+)\.sae\.pt", where)
    return Dictionary(
        W_enc=tensors["W_enc"].T,
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"].T,
        b_dec=tensors["b_dec"],
        activation=Activation(kind="topk", k=k),
        subtracts_b_dec=False,
        hook_point=f"layers.{layer[1]}" if layer else None,
        source={"format": "qwen_scope", "name": source.label},
    )
