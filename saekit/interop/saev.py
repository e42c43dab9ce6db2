"""saev: one file, a line of JSON and then a torch archive of tensors, in all the schemas that there have been."""

import io
import json
from typing import Any

import torch

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_pickle, one_of, tensors_of

_SHAPES = {"W_enc": "d F", "b_enc": "F", "W_dec": "F d", "b_dec": "d"}
_THRESHOLD = "activation.threshold"
_LONGEST_HEADER = 1 << 20


def matches(source: Source) -> bool:
    if source.pickle is None:
        return False
    with open(source.pickle, "rb") as file:
        return file.read(1) == b"{"


def read(source: Source, options: ReadOptions) -> Dictionary:
    path = source.pickle
    if path is None:
        raise CheckpointError(f"{source.path} holds no .pt file.")
    where = str(path)
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_HEADER)
        try:
            header: dict[str, Any] = json.loads(line)
        except ValueError:
            raise CheckpointError(f"{where} does not begin with a line of JSON.") from None
        tensors = tensors_of(load_pickle(io.BytesIO(file.read()), path), path)
    schema, config, kind, k = _parse(where, header)
    d_in = config.get("d_model", config.get("d_vit"))
    d_sae = config.get("d_sae") or (d_in * config["exp_factor"] if d_in and "exp_factor" in config else None)
    check(where, tensors, _SHAPES, optional={_THRESHOLD: ""}, sizes={"d": d_in, "F": d_sae}, said_by="its header")
    # Before schemas had numbers the encoder subtracted b_dec from its input; a file of those is told by having none.
    subtracts = schema is None
    notes = ["Its b_dec is folded: the encoder subtracted it." if subtracts else "Its encoder does not subtract b_dec."]
    notes.append(
        "saev does not store the mean and scale of its inputs: give input_mean and input_scale if it was trained with "
        "them, measured on the same activations."
    )
    threshold = options.threshold if options.threshold is not None else tensors.get(_THRESHOLD)
    if kind == "Relu":
        activation = Activation(kind="relu")
    elif kind == "BatchTopK" and threshold is not None:
        activation = Activation(kind="batchtopk", k=k, threshold=torch.as_tensor(threshold).float().clamp_min(0.0))
    else:
        # Without a threshold its BatchTopK is, when it is used, a TopK of each row.
        activation = Activation(kind="topk", k=k)
        notes.append("saev keeps negative values among the k largest; here they are 0.")
    return Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=activation,
        subtracts_b_dec=subtracts,
        source={"format": "saev", "schema": schema, "config": config},
        notes=tuple(notes),
    )


def _parse(where: str, header: dict[str, Any]) -> tuple[int | None, dict[str, Any], str, int | None]:
    """Schema, config, activation and its k. Schema 1 came in two forms: the activation as `cls`, or inside `cfg`."""
    schema = header.get("schema")
    if schema is None:
        return None, header, "Relu", None
    one_of(where, "schema", schema, [1, 2, 3, 4, 5])
    config = dict(header.get("cfg") or {})
    if schema == 1 and header.get("cls") in ("Relu", "TopK", "BatchTopK"):
        kind, parameters = header["cls"], config
    else:
        activation = config.get("activation") or {"cls": "Relu", "params": {}}
        kind, parameters = activation.get("cls"), activation.get("params") or {}
    one_of(where, "activation", kind, ["Relu", "TopK", "BatchTopK"])
    if kind == "Relu":
        return schema, config, kind, None
    k = parameters.get("top_k", 32)
    return schema, config, kind, int(k.get("value", 32) if isinstance(k, dict) else k)
