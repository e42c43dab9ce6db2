"""Regenerates tests/golden/embedded.json: what the embedded models compute before saekit converts them.

    pip install onnxruntime && python tests/golden/make_embedded.py

About two minutes on one core. DINOv2: the residual stream of the published ONNX graph itself, run by ONNX Runtime.
SmolLM2: the mean next-token loss of the published GGUF, dequantised to float32 by Transformers, on `tiny.TEXT`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

from saekit.backbones import EMBEDDED, load_backbone
from saekit.backbones.embedded import fetch_weights
from saekit.files import write_json

BLOCKS = (0, 5, 8, 9, 11)
TOKENS = (0, 1, 100, 256)
DIMENSIONS = (0, 50, 100, 383)


def picture() -> np.ndarray:
    """A picture of smooth waves, as the model's input, float32 [1 channel height width]."""
    y, x = np.mgrid[0:224, 0:224] / 224
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x * x), np.sin(11 * x * y)]
    return np.stack(waves)[None].astype(np.float32)


def dinov2(weights: Path) -> dict[str, list[list[float]]]:
    import onnx
    import onnxruntime

    model = onnx.load(str(weights))
    names = {f"layers.{block}": f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in BLOCKS}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    streams = session.run(list(names.values()), {"input_image": picture()})
    return {point: stream[0][np.ix_(TOKENS, DIMENSIONS)].tolist() for point, stream in zip(names, streams, strict=True)}


def smollm2(weights: Path) -> float:
    return next_token_loss(load_backbone(str(weights), dtype="float32", device="cpu"))


def next_token_loss(backbone: object) -> float:
    """Mean loss in nats over `tiny.TEXT` behind the model's prefix."""
    ids = torch.tensor([backbone.encode_text(tiny.TEXT)])  # type: ignore[attr-defined]
    with torch.inference_mode():
        logits = backbone.model(input_ids=ids).logits.float()  # type: ignore[attr-defined]
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        golden = {
            "dinov2": dinov2(fetch_weights(EMBEDDED["dinov2"], Path(scratch))),
            "smollm2": smollm2(fetch_weights(EMBEDDED["smollm2"], Path(scratch))),
        }
    write_json(Path(__file__).with_name("embedded.json"), golden)
