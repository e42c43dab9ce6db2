"""A tiny index whose backbone and autoencoder exist, for tests of the explorer's live pages."""

import io
from pathlib import Path

import tiny
import torch
from indexes import make_tiny_index
from PIL import Image

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.backbones import ImageTokens, TextWindows, load_backbone
from saekit.files import to_tagged

D_SAE = 24
CONTEXT = 32


def make_live_index(path: Path, kind: str = "text") -> Path:
    """`indexes.make_tiny_index` that names a real tiny backbone and a real (untrained) autoencoder."""
    spec = tiny.make("llama" if kind == "text" else "dinov2", path.parent / f"backbone-{kind}")
    backbone = load_backbone(spec)
    torch.manual_seed(0)
    autoencoder = SparseAutoencoder(SparseAutoencoderConfig(d_in=backbone.d_model, d_sae=D_SAE, sparsity=TopK(k=4)))
    autoencoder.b_enc.data.uniform_(-0.1, 0.1)
    checkpoint = autoencoder.save(path.parent / f"checkpoint-{kind}")
    options = TextWindows(context_size=CONTEXT) if kind == "text" else ImageTokens()
    make_tiny_index(
        path,
        kind,
        d_sae=D_SAE,
        backbone=backbone.describe(),
        hook_point="layers.0",
        input_options=to_tagged(options),
        checkpoint={"path": str(checkpoint), "weights_hash": "1" * 32, "class": "SparseAutoencoder", "config": {}},
    )
    return path


def png(width: int = 60, height: int = 40, mode: str = "RGB") -> bytes:
    """An encoded picture with a gradient, so that patches differ."""
    picture = Image.linear_gradient("L").resize((width, height)).convert(mode)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
