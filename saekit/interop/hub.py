"""The Hugging Face hub: what of a repository to fetch, and publishing an autoencoder with a card that describes it."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from saekit.errors import CheckpointError, ConfigError, require
from saekit.interop.card import model_card
from saekit.interop.source import PICKLES, Source

if TYPE_CHECKING:
    from saekit.autoencoders import SparseAutoencoder
    from saekit.autoencoders.transcoder import Transcoder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = {
    "weights.safetensors",
    "sae_weights.safetensors",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
    "ae.pt",
    "hyperparams.json",
}
_LISTED = 12
_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
"""Packages whose exceptions mean that the network failed; which of them the hub's library uses changed over time."""
_Result = TypeVar("_Result")


def fetch(path_or_hub_id: str | Path, *, subfolder: str | None, revision: str | None) -> Source:
    """The local files of a path, or of a repository on the hub, of which only what is asked for is fetched.

    `subfolder` is a folder or a file in it. Without one, the repository has to hold one autoencoder: `CheckpointError`
    lists the folders otherwise, and says what the hub answered when it gave nothing.
    """
    local = Path(path_or_hub_id)
    if local.exists():
        path = local / subfolder if subfolder else local
        if not path.exists():
            raise CheckpointError(f"{path} does not exist. {local} holds: {', '.join(Source(local, '').files[:8])}.")
        return Source(path, str(path))
    name = str(path_or_hub_id)
    if _HUB_ID.fullmatch(name) is None or name.startswith("."):
        raise CheckpointError(f"{name} does not exist, and an id on the hub is owner/name (with subfolder=...).")
    hub = require("huggingface_hub", "hub")
    if subfolder is None:
        subfolder = _the_one_folder(name, _files(hub, name, revision))
    subfolder = subfolder.strip("/")
    patterns = _patterns(subfolder)
    folder = _asked(name, lambda: hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    path = Path(folder) / subfolder if subfolder else Path(folder)
    if not path.exists():
        known = ", ".join(_folders(_files(hub, name, revision))[:_LISTED])
        raise CheckpointError(f"{name} has no {subfolder!r}. Folders with an autoencoder: {known or 'none'}.")
    return Source(path, f"{name}/{subfolder}" if subfolder else name)


def push_to_hub(
    sae: "SparseAutoencoder | Transcoder",
    repo_id: str,
    *,
    format: str = "saekit",
    path_in_repo: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    license: str | None = None,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload `sae` in `format` with a README.md that states its metrics and recipe; returns the address.

    `metrics` is the content of a metrics.json, or numbers by name; `recipe` how it was trained (a run.json's content),
    beside what the autoencoder itself remembers. The repository is made if need be, private unless asked otherwise.
    Several autoencoders go into one repository by `path_in_repo`; each has its own README.md there.

    Raises `ConfigError` for an id that is not owner/name and for what `format` cannot express, `CheckpointError` with
    the hub's answer when it refuses.
    """
    from saekit.interop.load import save_as

    if _HUB_ID.fullmatch(repo_id) is None:
        raise ConfigError(f"{repo_id!r} is no id on the hub: that is owner/name.")
    hub = require("huggingface_hub", "hub")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sae"
        notes = save_as(sae, folder, format=format)
        card = model_card(
            sae,
            repo_id=repo_id,
            format=format,
            subfolder=path_in_repo,
            notes=notes,
            metrics=metrics,
            recipe=recipe,
            license=license,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = hub.HfApi(token=token)
        _asked(repo_id, lambda: api.create_repo(repo_id=repo_id, private=private, exist_ok=True))
        _asked(
            repo_id,
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=path_in_repo,
                revision=revision,
                commit_message=f"Add {path_in_repo or 'a sparse autoencoder'}",
            ),
        )
    return f"https://huggingface.co/{repo_id}"


def _files(hub: Any, name: str, revision: str | None) -> list[str]:
    """All files of a repository; without a network those that are in the cache."""
    unreachable = None
    if not require("huggingface_hub.constants", "hub").HF_HUB_OFFLINE:
        try:
            return list(_asked(name, lambda: hub.HfApi().list_repo_files(name, revision=revision)))
        except CheckpointError as error:
            unreachable = error
    try:
        folder = Path(_asked(name, lambda: hub.snapshot_download(name, revision=revision, local_files_only=True)))
    except CheckpointError as error:
        raise unreachable or error from None
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _folders(files: Sequence[str]) -> list[str]:
    """Folders ("" is the root) that hold weights, and files that are an autoencoder by themselves."""
    found: dict[str, list[str]] = {}
    for path in map(PurePosixPath, files):
        if path.name in _WEIGHTS or path.suffix in PICKLES:
            found.setdefault("" if str(path.parent) == "." else str(path.parent), []).append(str(path))
    names = []
    for folder, paths in sorted(found.items()):
        alone = len(paths) == 1 or any(PurePosixPath(path).name in _WEIGHTS for path in paths)
        names += [folder] if alone else paths
    return names


def _the_one_folder(name: str, files: Sequence[str]) -> str:
    folders = _folders(files)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise CheckpointError(f"{name} holds no autoencoder that saekit knows, in {len(files)} files.")
    listed = ", ".join(repr(folder) for folder in folders[:_LISTED])
    more = f" and {len(folders) - _LISTED} more" if len(folders) > _LISTED else ""
    raise CheckpointError(f"{name} holds {len(folders)} autoencoders. Give subfolder, one of: {listed}{more}.")


def _patterns(subfolder: str) -> list[str]:
    """What to fetch: the folder, or the file and the configs beside it, or the root's own files."""
    if not subfolder:
        return ["*.json", "*.safetensors", "*.npz", *(f"*{suffix}" for suffix in PICKLES)]
    if PurePosixPath(subfolder).suffix in (*PICKLES, ".npz", ".safetensors"):
        parent = PurePosixPath(subfolder).parent
        return [subfolder, str(parent / "*.json"), str(parent.parent / "config.json")]
    return [f"{subfolder}/*"]


def _asked(name: str, question: Callable[[], _Result]) -> _Result:
    """The hub's answer; its refusals, and a network that is not there, in one line."""
    from huggingface_hub import errors

    try:
        return question()
    except errors.GatedRepoError:  # which is a repository that is not found, too
        raise CheckpointError(f"{name} asks you to accept its terms on the hub first.") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name} is not on the hub, or is private and you are not logged in (huggingface-cli login)."
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no such revision.") from None
    except Exception as error:
        is_the_hubs = isinstance(error, (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError))
        if not is_the_hubs and type(error).__module__.split(".")[0] not in _NETWORK:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"The hub gave nothing for {name}: {reason}") from None
