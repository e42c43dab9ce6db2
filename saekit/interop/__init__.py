"""Other projects' autoencoders: reading any of them, writing ours for them, the Hugging Face hub."""

from saekit.interop.formats import FORMATS, READABLE, WRITABLE, Format
from saekit.interop.hub import push_to_hub
from saekit.interop.load import load_sae, save_as

__all__ = ["FORMATS", "READABLE", "WRITABLE", "Format", "load_sae", "push_to_hub", "save_as"]
