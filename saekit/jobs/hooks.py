"""`saekit hooks`: list the hook points of a model with the width of what each gives."""

from dataclasses import dataclass

from tyro.conf import Positional

from saekit.backbones import Backbone, load_backbone
from saekit.errors import HookPointError


@dataclass(frozen=True, kw_only=True)
class HooksConfig:
    """List the hook points of a model."""

    model: Positional[str]
    """An embedded model (smollm2, dinov2), a Hugging Face hub id, a local folder, a .gguf file, or
    timm:ARCHITECTURE[@FILE]."""
    modules: bool = False
    """List every module path as well; each is a hook point, with :input or :output."""


def list_hook_points(backbone: Backbone) -> list[tuple[str, str, int]]:
    """Canonical hook point, module path it stands for and width, in the order in which a forward meets them."""
    return [(name, backbone.resolve(name), width) for name, width in backbone.widths().items()]


def run(config: HooksConfig) -> None:
    """Print the model's shape and its hook points."""
    backbone = load_backbone(config.model)
    print(f"{backbone.spec}: {backbone.family}, {backbone.n_layers} layers, d_model {backbone.d_model}")
    prefix = ", ".join(backbone.layout.prefix) or "none"
    print(f"tokens before the {backbone.layout.content}s: {prefix}\n")
    listed = list_hook_points(backbone)
    wide = max(len(name) for name, _, _ in listed)
    print(f"{'hook point':<{wide}}  width  module")
    for name, module, width in listed:
        print(f"{name:<{wide}}  {width:>5}  {module}")
    if not config.modules:
        print("\nEvery module path of the model is a hook point too, with :input or :output. List them: --modules")
        return
    print("\nmodule (class, width of its output where it gives one row per token)")
    for path, module in backbone.model.named_modules():
        if path:
            print(f"  {path}  {type(module).__name__} {_width(backbone, path)}")


def _width(backbone: Backbone, path: str) -> str:
    try:
        return str(backbone.width(path))
    except HookPointError:
        return "-"
