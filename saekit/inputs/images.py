"""Images for vision models, from folders and Hugging Face image datasets."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from saekit.errors import InputError, closest, require
from saekit.inputs.skipped import SkipLog
from saekit.inputs.source import IMAGE_SUFFIXES, class_names, dataset_rows, existing, list_files

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike = Union[Path, str, bytes, "Image", Callable[[], "Image"]]


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """One image that is not yet opened."""

    id: str
    """Unique in its source: a path below the source folder, or a row number."""
    load: Any = field(repr=False)
    """Where the image comes from: a path, an encoded file's bytes, or a Pillow image."""
    label: str | None = None
    """Class of the image: the name of its folder, or the dataset's label."""
    caption: str | None = None
    """The line of the text file of the same name beside it, where there is one."""

    def open(self) -> "Image":
        """The Pillow image, as stored (any mode, not yet turned upright). Raises `InputError` when it is unreadable."""
        image_module = require("PIL.Image", "vision")
        if isinstance(self.load, image_module.Image):
            return self.load
        try:
            data = self.load if isinstance(self.load, bytes) else Path(self.load).read_bytes()
            image = image_module.open(io.BytesIO(data))
            image.load()
        except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
            raise InputError(f"{self.id} is not a readable image: {error}") from None
        return image


def read_images(
    source: str | Path,
    *,
    image_field: str = "image",
    label_field: str = "label",
    glob: str | None = None,
    skipped: SkipLog | None = None,
) -> Iterator[ImageInput]:
    """The images of a source, one at a time, always in the same order; they are opened later, by `ImageInput.open`.

    `source` is an image, a folder of images (the label is the path of an image's folder below `source`, the caption
    the first line of the `.txt` of the same name), a folder written by `datasets.save_to_disk`, or
    `hf:owner/name[:split]`, which is streamed. Raises `InputError` when the source does not exist or holds no image.
    """
    log = SkipLog() if skipped is None else skipped
    n_read = 0
    for image in _read(source, image_field, label_field, glob, log):
        n_read += 1
        yield image
    if n_read == 0:
        reasons = "".join(f" {n}: {reason}." for reason, n in log.reasons.items())
        raise InputError(f"{source} holds no image.{reasons}")


def _read(
    source: str | Path, image_field: str, label_field: str, glob: str | None, log: SkipLog
) -> Iterator[ImageInput]:
    rows = dataset_rows(source)
    if rows is not None:
        for prefix, dataset in rows:
            yield from _read_dataset(dataset, prefix, image_field, label_field, log)
        return
    root = existing(source)
    for file in list_files(root, IMAGE_SUFFIXES, glob):
        id = file.relative_to(root).as_posix() if root.is_dir() else file.name
        folder = file.relative_to(root).parent.as_posix() if root.is_dir() else "."
        yield ImageInput(id=id, load=file, label=None if folder == "." else folder, caption=_caption_beside(file))


def _read_dataset(dataset: Any, prefix: str, image_field: str, label_field: str, log: SkipLog) -> Iterator[ImageInput]:
    datasets = require("datasets", "vision")
    columns = dataset.column_names or []
    if columns and image_field not in columns:
        raise InputError(
            f"The dataset has no column {image_field!r}; closest: {closest(image_field, columns)}. Its images are "
            f"expected there."
        )
    names = class_names(dataset, label_field)
    # Decoding here would open every image before it is wanted, and a corrupt one would end the iteration.
    encoded = dataset.cast_column(image_field, datasets.Image(decode=False))
    for i, row in enumerate(encoded):
        id, record, label = f"{prefix}{i}", row[image_field], row.get(label_field)
        load = record.get("bytes") or record.get("path") if record else None
        if load is None:
            log.add(id, "no image")
            continue
        if names is not None and isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        yield ImageInput(id=id, load=load, label=None if label is None else str(label), caption=row.get("caption"))


def _caption_beside(file: Path) -> str | None:
    try:
        lines = file.with_suffix(".txt").read_bytes().decode("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[0].strip() if lines else None
