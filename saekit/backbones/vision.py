"""Vision transformers: what all share, and those of Hugging Face Transformers (ViT, CLIP, SigLIP, DINOv2, DINOv3)."""

import inspect
import itertools
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.backbones.base import Backbone, Batch, Location, only
from saekit.backbones.images import Preprocessing, thumbnail, upright_rgb
from saekit.backbones.options import IMAGE_TOKENS, ImageTokens, TextWindows
from saekit.backbones.pretrained import first_line, load_config, load_model, quietly, unreadable
from saekit.backbones.third_party import import_transformers
from saekit.errors import BackboneError, ConfigError, HookPointError, InputError
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store.examples import Example, ImageGeometry, TokenLayout

_N_READERS = min(8, os.cpu_count() or 1)


class ImageBackbone(Backbone):
    """A plain vision transformer: an image becomes prefix tokens (class, registers) and a square grid of patches."""

    kind: ClassVar[str] = "image"

    def __init__(
        self, spec: str, model: nn.Module, n_layers: int | None, prefix: Sequence[str], patch: int, seen: Preprocessing
    ) -> None:
        """`prefix` names the tokens before the patches, `patch` is their side and `seen` the input, in pixels.

        Raises `BackboneError` when a forward shows another number of tokens.
        """
        self.prefix = tuple(prefix)
        self.patch_size = patch
        self.input = seen
        try:
            super().__init__(spec, model, n_layers)
            first = self.resolve("layers.0:input")
            found = self._forward([first], self._probe_inputs())[first].shape[1]
        except (HookPointError, RuntimeError, ValueError, AssertionError) as cause:
            raise BackboneError(f"{spec} is not a plain vision transformer: {first_line(cause)}") from None
        expected = len(prefix) + self._grid(seen.size) ** 2
        if found != expected:
            raise BackboneError(
                f"{spec} has {found} tokens; expected {expected}: {len(prefix)} before a square grid of {patch}-pixel "
                f"patches on {seen.size} pixels."
            )

    @abstractmethod
    def _model_inputs(self, pixels: Float[Tensor, "batch channel height width"]) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""

    def default_options(self) -> ImageTokens:
        return ImageTokens()

    def layout_for(self, options: TextWindows | ImageTokens) -> TokenLayout:
        self._check(options)
        return TokenLayout(content="patch", prefix=self.prefix)

    def examples(
        self,
        inputs: Iterable[Document] | Iterable[ImageInput],
        options: TextWindows | ImageTokens,
        skipped: SkipLog,
    ) -> Iterator[Example]:
        chosen = self._check(options)
        seen = self.input.resized(chosen.image_size)
        kept = self._kept(chosen, self._grid(seen.size))

        def read(image: ImageInput) -> Example | str:
            try:
                picture = image.open()
            except InputError:
                return "not a readable image"
            try:
                return self._example(image, upright_rgb(picture), seen, kept, chosen.thumbnail_size)
            except (InputError, OSError, ValueError, SyntaxError) as cause:
                return first_line(cause)

        waiting = only(inputs, ImageInput, self.spec)
        with ThreadPoolExecutor(_N_READERS, thread_name_prefix="saekit-images") as readers:
            while chunk := list(itertools.islice(waiting, 4 * _N_READERS)):
                for image, example in zip(chunk, readers.map(read, chunk), strict=True):
                    if isinstance(example, str):
                        skipped.add(image.id, example)
                    else:
                        yield example

    def _example(
        self, image: ImageInput, picture: Any, seen: Preprocessing, kept: np.ndarray, thumbnail_size: int
    ) -> Example:
        pixels, (left, top, right, bottom) = seen.apply(picture)
        grid = self._grid(seen.size)
        # Where patches do not divide the input, the right and bottom margins belong to no patch.
        tiled = grid * self.patch_size / seen.size
        geometry = ImageGeometry(
            width=picture.width,
            height=picture.height,
            crop=(left, top, left + (right - left) * tiled, top + (bottom - top) * tiled),
            grid=(grid, grid),
        )
        return Example(
            document=image.id,
            label=image.label,
            caption=image.caption,
            kept=kept,
            geometry=geometry,
            thumbnail=thumbnail(picture, thumbnail_size),
            pixels=pixels,
        )

    def _check(self, options: TextWindows | ImageTokens) -> ImageTokens:
        if not isinstance(options, ImageTokens):
            raise ConfigError(f"{self.spec} reads images; its options are ImageTokens, not {type(options).__name__}.")
        has = {kind for kind in IMAGE_TOKENS if kind == "patch" or any(_is(name, kind) for name in self.prefix)}
        if absent := [kind for kind in options.keep if kind not in has]:
            raise ConfigError(f"ImageTokens.keep: {self.spec} has no {', '.join(absent)} tokens; it has {sorted(has)}.")
        if options.image_size is not None and options.image_size % self.patch_size:
            raise ConfigError(
                f"ImageTokens.image_size={options.image_size} is not a multiple of the patch size of {self.spec}, "
                f"{self.patch_size}; take {max(1, round(options.image_size / self.patch_size)) * self.patch_size}."
            )
        return options

    def _kept(self, options: ImageTokens, grid: int) -> np.ndarray:
        positions = [i for i, name in enumerate(self.prefix) if any(_is(name, kind) for kind in options.keep)]
        if "patch" in options.keep:
            positions.extend(range(len(self.prefix), len(self.prefix) + grid**2))
        return np.array(positions, dtype=np.int32)

    def _grid(self, size: int) -> int:
        return size // self.patch_size

    def n_tokens(self, example: Example) -> int:
        if example.geometry is None:
            raise InputError(f"Example {example.document!r} is not an image.")
        rows, columns = example.geometry.grid
        return len(self.prefix) + rows * columns

    def preprocessing(self) -> dict[str, Any]:
        return {**asdict(self.input), "patch_size": self.patch_size}

    def logits(self, examples: Sequence[Example]) -> Float[Tensor, "batch class"]:
        self._require_head()
        with torch.inference_mode():
            output = self.model(**self._model_inputs(self._stack(examples)))
        return output if isinstance(output, Tensor) else output.logits

    @abstractmethod
    def _require_head(self) -> None:
        """Raise `BackboneError` when the checkpoint has no classification head."""

    def _batches(self, examples: Sequence[Example], batch_size: int, pack: bool) -> Iterator[Batch]:
        if pack:
            raise ConfigError(f"{self.spec} reads images, which are not packed; set pack=False.")
        for start in range(0, len(examples), batch_size):
            indices = list(range(start, min(start + batch_size, len(examples))))
            batch = [examples[index] for index in indices]
            n_tokens = self.n_tokens(batch[0])
            kept = np.concatenate([row * n_tokens + example.kept.astype(np.int64) for row, example in enumerate(batch)])
            yield Batch(indices, self._model_inputs(self._stack(batch)), torch.from_numpy(kept))

    def _stack(self, examples: Sequence[Example]) -> Float[Tensor, "batch channel height width"]:
        absent = [example.document for example in examples if example.pixels is None]
        if absent:
            raise InputError(f"{len(absent)} examples carry no pixels, first {absent[0]!r}; make them with examples().")
        pixels = torch.from_numpy(np.stack([example.pixels for example in examples if example.pixels is not None]))
        return pixels.to(self.device, self.dtype, non_blocking=True)

    def _probe_inputs(self) -> dict[str, Any]:
        parameter = next(self.model.parameters())
        size = self.input.size
        return self._model_inputs(torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device))


class TransformersViT(ImageBackbone):
    """A vision transformer of Transformers; of a CLIP or SigLIP checkpoint, the image tower."""

    family: ClassVar[str] = "transformers_vit"

    def __init__(self, spec: str, model: Any, seen: Preprocessing) -> None:
        self.config = model.config
        parameters = inspect.signature(model.forward).parameters
        self._interpolates = "interpolate_pos_encoding" in parameters
        patch = self.config.patch_size
        patch = patch if isinstance(patch, int) else patch[0]
        super().__init__(spec, model, self.config.num_hidden_layers, _prefix_names(model), patch, seen)

    @classmethod
    def load(cls, spec: str, location: Location, dtype: str | None, device: torch.device) -> "TransformersViT":
        config = load_config(location, spec)
        architecture = (getattr(config, "architectures", None) or [""])[0]
        classifies = architecture.endswith("ForImageClassification")
        auto_class = "AutoModelForImageClassification" if classifies else "AutoModel"
        if hasattr(config, "vision_config") and not classifies:
            location = {**location, "config": config.vision_config}
        model = load_model(auto_class, location, spec, config, dtype, device)
        return cls(spec, model, _read_preprocessing(location, spec))

    def _model_inputs(self, pixels: Float[Tensor, "batch channel height width"]) -> dict[str, Any]:
        # DINOv2 and DINOv3 adapt their positions to the input by themselves; the others must be asked to.
        native = self.config.image_size
        if self._interpolates and pixels.shape[-1] != (native if isinstance(native, int) else native[0]):
            return {"pixel_values": pixels, "interpolate_pos_encoding": True}
        return {"pixel_values": pixels}

    def _require_head(self) -> None:
        if getattr(self.model, "classifier", None) is None:
            raise BackboneError(f"{self.spec} is a checkpoint without a classification head; it has no logits.")


def _prefix_names(model: nn.Module) -> list[str]:
    """Names of the tokens before the patches, in the order in which these families concatenate them."""
    parameters = {name.rpartition(".")[2]: parameter for name, parameter in model.named_parameters()}
    names = ["cls"] if {"cls_token", "class_embedding"} & parameters.keys() else []
    if "distillation_token" in parameters:
        names.append("distillation")
    registers = parameters.get("register_tokens")
    return names + [f"register_{i}" for i in range(0 if registers is None else registers.shape[-2])]


def _read_preprocessing(location: Location, spec: str) -> Preprocessing:
    transformers = import_transformers("vision")
    try:
        with quietly():
            processor = transformers.AutoImageProcessor.from_pretrained(**location, backend="pil")
    except Exception as cause:
        what = f"{spec}: its preprocessor_config.json, which says how images are prepared, cannot be read"
        raise unreadable(what, cause, "vision") from None
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    shorter = size.get("shortest_edge")
    resize_to = shorter or size.get("height")
    final = crop.get("height") if crop else resize_to
    square = (size.get("height") == size.get("width")) and (crop is None or crop.get("height") == crop.get("width"))
    if not processor.do_resize or not resize_to or not square or (shorter and crop is None) or final > resize_to:
        raise BackboneError(
            f"{spec}: its image processor (size {dict(size)}, crop {crop and dict(crop)}) does not give square images "
            f"of one size, which saekit needs."
        )
    normalize = processor.do_normalize
    return Preprocessing(
        size=final,
        resize_to=resize_to,
        squash=shorter is None,
        resample=int(processor.resample),
        mean=tuple(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
    )


def _is(name: str, kind: str) -> bool:
    """Whether the prefix token `name` is of a kind of `IMAGE_TOKENS`; registers are numbered."""
    return name == kind or name.startswith(f"{kind}_")
