"""Models with hook points: language models and vision transformers behind one interface."""

from saekit.backbones.base import Backbone
from saekit.backbones.embedded import EMBEDDED, embedded_folder
from saekit.backbones.language import CausalLM, EncoderLM, TextBackbone
from saekit.backbones.load import BACKBONES, load_backbone
from saekit.backbones.options import ImageTokens, TextWindows
from saekit.backbones.vision import ImageBackbone

__all__ = [
    "BACKBONES",
    "EMBEDDED",
    "Backbone",
    "CausalLM",
    "EncoderLM",
    "ImageBackbone",
    "ImageTokens",
    "TextBackbone",
    "TextWindows",
    "embedded_folder",
    "load_backbone",
]
