"""Documents and images from files, folders and Hugging Face datasets, read one at a time. No torch needed."""

from saekit.inputs.documents import Document, read_documents
from saekit.inputs.images import ImageInput, read_images
from saekit.inputs.skipped import SkipLog
from saekit.inputs.source import SourceSize, measure_source

__all__ = [
    "Document",
    "ImageInput",
    "SkipLog",
    "SourceSize",
    "measure_source",
    "read_documents",
    "read_images",
]
