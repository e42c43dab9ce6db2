"""One or more examples of every autoencoder class, for the contracts in tests/contracts/test_autoencoders.py.

A class without a case here fails there. A case says how one is made and what rows it takes; the rest has defaults.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import saekit as sk
from saekit.autoencoders import Autoencoder
from saekit.autoencoders.classic_sparse import L1, ClassicSparseAutoencoder, ClassicSparseAutoencoderConfig
from saekit.autoencoders.contractive import ContractiveAutoencoder, ContractiveAutoencoderConfig
from saekit.autoencoders.corruption import GaussianNoise, Masking
from saekit.autoencoders.denoising import DenoisingAutoencoder, DenoisingAutoencoderConfig
from saekit.autoencoders.priors import NormalMixture
from saekit.autoencoders.transcoder import Transcoder, TranscoderConfig
from saekit.autoencoders.variational import VariationalAutoencoder, VariationalAutoencoderConfig

D_IN = 6


def normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, D_IN, generator=generator)


def unit_interval(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, D_IN, generator=generator)


def binary(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, D_IN, generator=generator).round()


def counts(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, 9, (n, D_IN), generator=generator).float()


def training_total(model: Autoencoder, x: Tensor) -> Tensor:
    return model.training_loss(x).total


def nll(model: Autoencoder, x: Tensor) -> Tensor:
    return model.nll(x)  # type: ignore[operator,no-any-return]


def squared_error(model: Autoencoder, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum(1)


def free_energy(model: Autoencoder, x: Tensor) -> Tensor:
    return model.free_energy(x)  # type: ignore[operator,no-any-return]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An autoencoder and what is needed to test it."""

    kind: type[Autoencoder]
    config: object
    name: str
    """Ends the test's id."""
    rows: Callable[[int, torch.Generator], Tensor] = normal
    """Data that it takes, `[n D_IN]`."""
    modules: Callable[[], dict[str, nn.Module]] = field(default=dict)
    """Modules of one's own that it is made and loaded with."""
    example_loss: Callable[[Autoencoder, Tensor], Tensor] = nll
    """The loss of each example, `[n]`."""
    smooth_loss: Callable[[Autoencoder, Tensor], Tensor] = training_total
    """A scalar whose gradient autograd has exactly and which is no small difference of large numbers: the training
    loss, unless that is a surrogate (straight through, or a difference of free energies)."""
    trains: bool = True
    """False for a class that is read from elsewhere and not trained."""

    def make(self) -> Autoencoder:
        return self.kind(self.config, **self.modules())

    def batch(self, n: int, seed: int) -> Tensor:
        return self.rows(n, torch.Generator().manual_seed(seed))

    def __str__(self) -> str:
        return f"{self.kind.__name__}-{self.name}"


def sparse(sparsity: object, name: str, **settings: object) -> Case:
    config = sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=20, sparsity=sparsity)
    return Case(kind=sk.SparseAutoencoder, config=config, name=name, example_loss=squared_error, **settings)


def deep(name: str, rows: Callable[[int, torch.Generator], Tensor] = normal, **settings: object) -> Case:
    config = sk.DeepAutoencoderConfig(
        **{"d_in": D_IN, "d_latent": 3, "network": sk.Mlp(hidden=(5,), activation="tanh")} | settings
    )
    return Case(kind=sk.DeepAutoencoder, config=config, name=name, rows=rows)


def custom_modules() -> dict[str, nn.Module]:
    torch.manual_seed(8)
    return {"encoder": nn.Sequential(nn.Linear(D_IN, 4), nn.Tanh(), nn.Linear(4, 3)), "decoder": nn.Linear(3, D_IN)}


def of_state(loss: Callable[[Autoencoder, Tensor], Tensor]) -> Callable[[Autoencoder, Tensor], Tensor]:
    return lambda model, x: loss(model, x).mean()


small = sk.Mlp(hidden=(5,), activation="tanh")
CASES = [
    sparse(sk.Relu(), "relu"),
    sparse(sk.KLDivergence(), "kl", smooth_loss=of_state(squared_error)),
    sparse(sk.TopK(k=3), "topk"),
    Case(
        kind=Transcoder,
        config=TranscoderConfig(d_in=D_IN, d_out=4, d_sae=20, sparsity=sk.TopK(k=3), has_skip=True),
        name="topk-skip",
        trains=False,
    ),
    Case(kind=sk.LinearAutoencoder, config=sk.LinearAutoencoderConfig(d_in=D_IN, d_latent=2), name="untied"),
    Case(
        kind=sk.LinearAutoencoder,
        config=sk.LinearAutoencoderConfig(d_in=D_IN, d_latent=8, tied=True, centred=False),
        name="tied-overcomplete",
    ),
    deep("squared-error"),
    deep("overcomplete-sigmoid", unit_interval, d_latent=9, likelihood=sk.SquaredError(link="sigmoid")),
    deep("learned-sigma", likelihood=sk.Gaussian(sigma="learned")),
    # The gradient goes around the running sigma: only `nll`, at a given one, is smooth.
    dataclasses.replace(deep("optimal-sigma", likelihood=sk.Gaussian(sigma="optimal")), smooth_loss=of_state(nll)),
    deep("fixed-sigma", likelihood=sk.Gaussian(sigma=0.4)),
    deep("laplace", likelihood=sk.Laplace(scale=0.5)),
    deep(
        "tied-bernoulli",
        binary,
        network=sk.Mlp(hidden=(5,), activation="sigmoid", tied=True),
        likelihood=sk.Bernoulli(),
    ),
    deep("continuous-bernoulli", unit_interval, likelihood=sk.ContinuousBernoulli(), code="tanh"),
    deep(
        "documents", counts, network=sk.Mlp(hidden=(5,), log1p_input=True), likelihood=sk.Multinomial(), code_noise=0.1
    ),
    deep("convolutional", network=sk.Convolutional(image=(1, 3, 2), channels=(2, 3), hidden=(4,), activation="tanh")),
    Case(
        kind=sk.DeepAutoencoder,
        config=sk.DeepAutoencoderConfig(d_in=D_IN, d_latent=3, network=sk.Custom(encoder="6-4-3, tanh", decoder="3-6")),
        name="custom",
        modules=custom_modules,
    ),
    *(
        Case(
            kind=sk.RBM,
            config=sk.RBMConfig(
                d_in=D_IN, d_latent=4, visible=visible, hidden=hidden, chains=chains, n_chains=5, n_gibbs=2
            ),
            name=f"{visible}-{hidden}-{chains}",
            rows=binary if visible == "binary" else normal,
            example_loss=free_energy,
            smooth_loss=of_state(free_energy),
        )
        for visible, hidden, chains in (
            ("binary", "binary", "data"),
            ("binary", "gaussian", "persistent"),
            ("gaussian", "binary", "persistent"),
        )
    ),
    Case(
        kind=DenoisingAutoencoder,
        config=DenoisingAutoencoderConfig(d_in=D_IN, d_latent=8, network=small, corruption=GaussianNoise(sigma=0.3)),
        name="gaussian",
    ),
    Case(
        kind=DenoisingAutoencoder,
        config=DenoisingAutoencoderConfig(
            d_in=D_IN, d_latent=8, network=small, corruption=Masking(), emphasis=(1.0, 0.5), likelihood=sk.Bernoulli()
        ),
        name="masking-emphasised",
        rows=unit_interval,
    ),
    Case(kind=ContractiveAutoencoder, config=ContractiveAutoencoderConfig(d_in=D_IN, d_latent=4), name="closed"),
    Case(
        kind=ContractiveAutoencoder,
        config=ContractiveAutoencoderConfig(d_in=D_IN, d_latent=4, network=small, jacobian="exact", code="tanh"),
        name="exact",
    ),
    Case(
        kind=VariationalAutoencoder,
        config=VariationalAutoencoderConfig(d_in=D_IN, d_latent=3, network=small),
        name="normal",
        rows=binary,
    ),
    Case(
        kind=VariationalAutoencoder,
        config=VariationalAutoencoderConfig(
            d_in=D_IN, d_latent=3, network=small, likelihood=sk.Gaussian(sigma=0.5), prior=NormalMixture(), beta=0.5
        ),
        name="mixture",
    ),
    Case(
        kind=ClassicSparseAutoencoder,
        config=ClassicSparseAutoencoderConfig(d_in=D_IN, d_latent=9, sparsity=L1()),
        name="l1",
    ),
    Case(
        kind=ClassicSparseAutoencoder,
        config=ClassicSparseAutoencoderConfig(d_in=D_IN, d_latent=9, sparsity=sk.KLDivergence(momentum=0.0)),
        name="kl",
    ),
]
