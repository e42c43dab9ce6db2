"""The errors users meet: each says what was wrong with its value, what would be right, and what to type next."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SaekitError(Exception):
    """Base of every error that a user's input can cause; the command line prints it without a traceback."""


class ConfigError(SaekitError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class InputError(SaekitError, ValueError):
    """Texts, images or tensors handed to saekit that cannot be used."""


class BackboneError(SaekitError, ValueError):
    """A model that cannot be found or is of no known family."""


class HookPointError(SaekitError, LookupError):
    """A hook point that the backbone does not have."""


class StoreError(SaekitError, RuntimeError):
    """An activation store on disk that is missing, incomplete, damaged or full."""


class CheckpointError(SaekitError, RuntimeError):
    """A checkpoint on disk that is missing, damaged, or of another class, run or store."""


class FeatureIndexError(SaekitError, RuntimeError):
    """A feature index on disk that is missing, incomplete or damaged."""


class MissingExtraError(SaekitError, ImportError):
    """A package that only some jobs need is not installed."""


def closest(name: str, options: Iterable[str], n: int = 3) -> str:
    """The `n` options nearest in spelling to `name`, quoted and comma-separated, for the end of an error message."""
    known = sorted(set(options))
    near = difflib.get_close_matches(name, known, n=n, cutoff=0.3) or known[:n]
    return ", ".join(repr(option) for option in near)


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` with the pip line that installs `extra`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).split(".")[0]
        if missing != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"This needs the package {missing!r}, which is not installed. Type: pip install 'saekit[{extra}]'"
        ) from None
