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
    content = {"token": "text", "patch": "patches"}[backbone.layout.content]
    lines = [
        f"{backbone.spec}: {backbone.family}, {backbone.n_layers} layers, d_model {backbone.d_model}",
        f"tokens before the {content}: {', '.join(backbone.layout.prefix) or 'none'}",
        "",
    ]
    listed = list_hook_points(backbone)
    wide = max(len(name) for name, _, _ in listed)
    lines.append(f"{'hook point':<{wide}}  width  module")
    lines += [f"{name:<{wide}}  {width:>5}  {module}" for name, module, width in listed]
    lines.append("")
    if config.modules:
        lines.append("module  class  width of its output, where it gives one row per token")
        modules = [(path, type(module).__name__) for path, module in backbone.model.named_modules() if path]
        lines += [f"{path}  {name}  {_width(backbone, path)}" for path, name in modules]
    else:
        lines.append("Every module path is a hook point too, with :input or :output. List them: --modules")
    print("\n".join(lines))


def _width(backbone: Backbone, path: str) -> str:
    try:
        return str(backbone.width(path))
    except HookPointError:
        return "-"
