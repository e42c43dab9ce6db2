"""`Autoencoder`: what every autoencoder of saekit can do, and how one is saved and loaded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, final

from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.checkpoint import check_tensors, read_checkpoint, write_checkpoint
from saekit.errors import CheckpointError, closest
from saekit.files import from_tagged, to_tagged
from saekit.kernels import SparseLatents

# In place of typing.Self, which beartype's import hook refuses on single methods.
_Kind = TypeVar("_Kind", bound="Autoencoder")


class LossTerms(NamedTuple):
    """What one batch cost. `total` is differentiable, the rest is detached and on the model's device."""

    total: Tensor
    """`[]`: what to call `backward` on."""
    terms: dict[str, Tensor]
    """`[]` each: the parts of the loss, which add up to `total`, and measures such as `l0` and `fvu`."""
    x_hat: Tensor
    """`[batch d_in]`: the reconstruction, in the units of the input."""
    latents: Tensor | SparseLatents
    """`[batch d_latent]`; `SparseLatents` when the step never formed the dense matrix."""


class Autoencoder(nn.Module, ABC):
    """A map to latents and back. A subclass names its `Config`, a frozen dataclass, and takes one to be built.

    `encode`, `decode` and `forward` are pure. `training_loss` is the only method that may change state, and all state
    is parameters and buffers: what `save` writes is all there is.
    """

    Config: ClassVar[type]
    provenance: dict[str, Any] | None
    """Where the training data came from (backbone, hook point, options, hash of the store), as `save` was given it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.provenance = None

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """Latents of raw activations."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """Raw activations from latents."""

    @abstractmethod
    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """The loss of a batch of raw activations; may update buffers."""

    def decode_for(
        self, x: Float[Tensor, "batch d_in"], latents: Float[Tensor, "batch d_latent"]
    ) -> Float[Tensor, "batch d_out"]:
        """The reconstruction of `x` from latents, its own or edited ones.

        `decode`, but where the output depends on `x` by another way than the latents: an autoencoder that normalises
        each token by itself, a transcoder with a skip connection. Those fill it in.
        """
        return self.decode(latents)

    @final  # type: ignore[misc]
    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """The reconstruction of `x`."""
        return self.decode_for(x, self.encode(x))

    def project_gradients_(self) -> None:
        """Empty hook, called after `backward` and before each optimizer step."""

    def project_(self) -> None:
        """Empty hook, called after each optimizer step."""

    @final
    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
        """Write config, parameters, buffers and `provenance` (default: what this model was loaded with) to a directory.

        An existing checkpoint at `path` is replaced; a kill at any moment leaves the old one or the new one, whole.
        """
        if provenance is not None:
            self.provenance = dict(provenance)
        return write_checkpoint(path, type(self).__name__, to_tagged(self.config), self.state_dict(), self.provenance)

    @classmethod
    def load(cls: type[_Kind], path: str | Path, **modules: nn.Module) -> _Kind:
        """Read a checkpoint of this class (or of a subclass) onto the CPU.

        `modules` are the ones of your own that it was made with (`encoder=`, `decoder=`), where it was.

        Raises `CheckpointError` when there is none, it is damaged, its tensors do not fit its config (all of them are
        listed), or it is of another class.
        """
        model = load_autoencoder(path, **modules)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{path} holds a {type(model).__name__}, not a {cls.__name__}. Type: load_autoencoder({str(path)!r})"
            )
        return model


def load_autoencoder(path: str | Path, **modules: nn.Module) -> Autoencoder:
    """Read a checkpoint of any class onto the CPU; raises as `Autoencoder.load` does."""
    meta, tensors = read_checkpoint(path)
    classes = _subclasses(Autoencoder)
    name = meta["class"]
    if name not in classes:
        raise CheckpointError(
            f"{path} holds a {name!r}, which this saekit does not have. Has: {closest(name, classes)}"
        )
    try:
        model = classes[name](from_tagged(meta["config"], classes[name].Config), **modules)
    except (TypeError, ValueError, AttributeError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"The config in {Path(path) / 'meta.json'} makes no {name}: {error}") from None
    check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    model.provenance = meta.get("provenance")
    return model


def _subclasses(cls: Any) -> dict[str, type[Autoencoder]]:
    found: dict[str, type[Autoencoder]] = {}
    for child in cls.__subclasses__():
        found |= {child.__name__: child} | _subclasses(child)
    return found
