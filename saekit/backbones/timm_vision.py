"""Vision transformers of timm: an architecture's name, with pretrained weights from the hub or a local file."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.backbones.base import Location, resolve_dtype
from saekit.backbones.images import Preprocessing
from saekit.backbones.pretrained import first_line, hub_is_reachable
from saekit.backbones.third_party import import_timm
from saekit.backbones.vision import ImageBackbone
from saekit.errors import BackboneError, closest, require

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class TimmViT(ImageBackbone):
    """A vision transformer of timm. At another image size than its own, timm resamples positions with antialiasing."""

    family: ClassVar[str] = "timm"

    def __init__(self, spec: str, model: Any) -> None:
        timm = import_timm()
        patch = _patch_size(model, spec)
        seen = _preprocessing(timm.data.resolve_model_data_config(model), spec)
        super().__init__(spec, model, None, _prefix_names(model), patch, seen)

    @classmethod
    def load(cls, spec: str, location: Location, dtype: str | None, device: torch.device) -> "TimmViT":
        timm = import_timm()
        name, file = location["architecture"], location["file"]
        if not timm.is_model(name.split(".")[0]):
            raise BackboneError(f"timm has no architecture {name!r}. Closest: {closest(name, timm.list_models())}")
        weights = _read_weights(file, spec) if file else None
        settings: dict[str, Any] = {"pretrained": weights is None}
        if weights is None and not hub_is_reachable():
            raise BackboneError(
                f"The pretrained weights of {spec} come from the Hugging Face hub, which cannot be reached. With the "
                f"weights in a file, type: timm:{name}@/path/to.safetensors"
            )
        if weights is not None:
            settings["num_classes"] = weights["head.weight"].shape[0] if "head.weight" in weights else 0
        try:
            model = _create(timm, name, settings)
            _patch_size(model, spec)
            if weights is not None:
                _fill(model, weights, spec)
        except BackboneError:
            raise
        except Exception as cause:  # timm passes on whatever the hub or torch raise
            raise BackboneError(f"{spec} cannot be loaded: {first_line(cause)}") from None
        stored = next(iter(weights.values())).dtype if weights else next(model.parameters()).dtype
        return cls(spec, model.to(device, resolve_dtype(dtype, stored, device)))

    def _model_inputs(self, pixels: Float[Tensor, "batch channel height width"]) -> dict[str, Any]:
        return {"x": pixels}

    def _require_head(self) -> None:
        if not getattr(self.model, "num_classes", 0):
            raise BackboneError(f"{self.spec} is a checkpoint without a classification head; it has no logits.")


def timm_location(spec: str) -> tuple[str, Location]:
    """The spec with its file's absolute path, and its parts, of `timm:ARCHITECTURE` or `timm:ARCHITECTURE@FILE`."""
    name, _, file = spec.removeprefix("timm:").partition("@")
    if not file:
        return spec, {"architecture": name, "file": None}
    path = Path(file).expanduser().absolute()
    return f"timm:{name}@{path}", {"architecture": name, "file": path}


def _create(timm: Any, name: str, settings: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **settings, dynamic_img_size=True)
    except TypeError:  # an architecture that takes one image size only
        return timm.create_model(name, **settings)


def _read_weights(file: Path, spec: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise BackboneError(f"{spec}: {file} does not exist.")
    try:
        weights: dict[str, Tensor] = require("safetensors.torch", "vision").load_file(file)
    except Exception as cause:
        raise BackboneError(f"{spec}: {file} is not a safetensors file: {first_line(cause)}") from None
    return weights


def _fill(model: nn.Module, weights: dict[str, Tensor], spec: str) -> None:
    expected = model.state_dict()
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected))
    shapes = sorted(n for n in set(expected) & set(weights) if expected[n].shape != weights[n].shape)
    if missing or unknown or shapes:
        raise BackboneError(
            f"{spec}: the file does not fit the architecture: {len(missing)} weights missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}."
        )
    model.load_state_dict(weights)


def _patch_size(model: Any, spec: str) -> int:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None:
        raise BackboneError(f"{spec} ({type(model).__name__}) is not a vision transformer: it has no patches.")
    return int(patch[0])


def _prefix_names(model: Any) -> list[str]:
    """Names of the tokens before the patches, in timm's order: class, distillation, registers."""
    n_prefix = getattr(model, "num_prefix_tokens", 0)
    n_registers = getattr(model, "num_reg_tokens", None)
    if n_registers is None:
        registers = getattr(model, "reg_token", None)
        n_registers = 0 if registers is None else registers.shape[1]
    names = ["cls", "distillation"][: n_prefix - n_registers]
    return names + [f"register_{i}" for i in range(n_registers)]


def _preprocessing(config: dict[str, Any], spec: str) -> Preprocessing:
    _, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if height != width or mode not in ("center", "squash"):
        raise BackboneError(f"{spec}: saekit shows it no {height}x{width} images with crop mode {mode!r}.")
    return Preprocessing(
        size=height,
        resize_to=int(height / (config.get("crop_pct") or 0.875)),
        squash=mode == "squash",
        resample=_RESAMPLE[config.get("interpolation") or "bilinear"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
