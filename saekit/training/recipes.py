"""Published ways of training a sparse autoencoder, by name, with their hyperparameters in saekit's units.

Steps and warm-ups are kept as shares of the published run, so that a recipe fits a run of any length. What saekit does
otherwise is said in `differs`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from saekit.autoencoders.sparse import SparseAutoencoderConfig
from saekit.autoencoders.sparsity import BatchTopK, JumpRelu, KLDivergence, Relu, Sparsity, TopK
from saekit.errors import ConfigError, closest
from saekit.training.config import FitConfig
from saekit.training.scaling import LossScale, convert_weight

StartBias = Literal["mean", "median"]
"""The mean of the activations, or their geometric median."""
RecipeName = Literal[
    "anthropic_april",
    "towards_monosemanticity",
    "cunningham_l1",
    "gao_topk",
    "batch_topk",
    "gemma_scope_jumprelu",
    "saev_clip",
    "classic_kl",
]
OWN_CENTRING = "inputs are centred on their mean, and b_dec is subtracted from the encoder's input"


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """A recipe made concrete for one width and run."""

    autoencoder: SparseAutoencoderConfig
    fit: FitConfig
    batch_size: int
    start_from_data: float
    """Share of a row's direction in each initial latent (`start_from_data_`); 0 starts at random."""
    start_bias: StartBias
    """Where b_dec starts."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published recipe; `settings` makes it concrete."""

    name: str
    source: str
    """Who published it."""
    summary: str
    """One line of what is special about it."""
    differs: str
    """What saekit does otherwise than the source."""
    n_tokens: int
    """Tokens of the published run."""
    batch_size: int
    sparsity: Callable[[int, float | None], Sparsity]
    """The sparsity at d_in, for activations of this mean squared norm about their mean."""
    fit: FitConfig
    decoder_norm: str = "unit"
    decoder_init_norm: float = 1.0
    dead_after_share: float = 0.1
    """Share of the run without firing after which a latent is dead."""
    start_from_data: float = 0.0
    start_bias: StartBias = "mean"
    is_raw: bool = False
    """Its weight is for activations as they are, so `mean_squared_norm` is needed."""

    def settings(
        self, d_in: int, d_sae: int, n_tokens: int, mean_squared_norm: float | None = None, seed: int = 0
    ) -> RecipeSettings:
        """The configs of a run of `n_tokens`.

        `mean_squared_norm` is that of the activations about their mean (`store.moments()[1]`), asked for by recipes
        whose weight is for raw activations. Raises `ConfigError` when it is missing, or d_sae too small.
        """
        return RecipeSettings(
            autoencoder=SparseAutoencoderConfig(
                d_in=d_in,
                d_sae=d_sae,
                sparsity=self.sparsity(d_in, mean_squared_norm),
                decoder_norm="free" if self.decoder_norm == "free" else "unit",
                decoder_init_norm=self.decoder_init_norm,
                dead_after_tokens=max(1, round(self.dead_after_share * n_tokens)),
                seed=seed,
            ),
            fit=self.fit,
            batch_size=self.batch_size,
            start_from_data=self.start_from_data,
            start_bias=self.start_bias,
        )


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; `ConfigError` with the closest ones when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"No recipe {name!r}. Closest: {closest(name, RECIPES)}. All: {', '.join(RECIPES)}.")
    return RECIPES[name]


def _l1(weight: float, given: LossScale) -> Callable[[int, float | None], Sparsity]:
    return lambda d_in, raw: Relu(l1=convert_weight(weight, d_in, given=given, mean_squared_norm=raw))


def _gemma_scope(d_in: int, raw: float | None) -> Sparsity:
    # Published for inputs of mean squared norm 1; thresholds are activations, so they, and the steps that Adam moves
    # them by, scale as the inputs do.
    size = math.sqrt(d_in)
    weight = convert_weight(5e-4, d_in, penalty="l0", given=LossScale(inputs="unit"))
    return JumpRelu(weight=weight, threshold=0.001 * size, bandwidth=0.001 * size, threshold_lr=size)


_ALL = (
    Recipe(
        name="anthropic_april",
        source="Conerly et al. 2024, Circuits Updates April 2024 (Transformer Circuits)",
        summary="L1 weighted by the norms of a free decoder",
        differs=OWN_CENTRING,
        n_tokens=820_000_000,
        batch_size=4096,
        sparsity=_l1(5.0, LossScale(inputs="sqrt_d")),
        decoder_norm="free",
        decoder_init_norm=0.1,
        fit=FitConfig(lr=5e-5, lr_warmup_fraction=0.0, lr_decay_fraction=0.2, sparsity_warmup_fraction=0.05),
    ),
    Recipe(
        name="towards_monosemanticity",
        source="Bricken et al. 2023, Towards Monosemanticity (Transformer Circuits)",
        summary="L1 with a unit decoder, dead latents resampled four times in the first half",
        differs="the weight (0.1 at E||x||^2 = 1), lr and warm-ups are those of dictionary_learning's standard "
        "trainer, for the paper's are for raw MLP activations; inputs are centred on their mean",
        n_tokens=1_638_400_000,
        batch_size=8192,
        sparsity=_l1(0.1, LossScale(inputs="unit")),
        dead_after_share=12_500 / 200_000,
        start_bias="median",
        fit=FitConfig(
            lr=1e-3,
            lr_warmup_fraction=1000 / 200_000,
            lr_decay_fraction=0.0,
            sparsity_warmup_fraction=2000 / 200_000,
            clip_grad_norm=0.0,
            resample_at=(0.125, 0.25, 0.375, 0.5),
            resample_tokens=819_200,
        ),
    ),
    Recipe(
        name="cunningham_l1",
        source="Cunningham et al. 2023 (arXiv:2309.08600)",
        summary="plain L1 on raw activations, errors averaged over features",
        differs="encoder and decoder are not tied; inputs are centred on their mean",
        n_tokens=20_000_000,
        batch_size=1024,
        sparsity=_l1(8.577e-4, LossScale(inputs="raw", errors="mean")),
        is_raw=True,
        fit=FitConfig(
            lr=1e-3, lr_warmup_fraction=0.0, lr_decay_fraction=0.0, sparsity_warmup_fraction=0.0, clip_grad_norm=0.0
        ),
    ),
    Recipe(
        name="gao_topk",
        source="Gao et al. 2024 (arXiv:2406.04093)",
        summary="TopK with AuxK, lr by the width of the dictionary",
        differs="each input is scaled by the mean norm of all, not by its own; no average of the weights over "
        "time; a latent is dead after a tenth of the run (published: 10 million tokens)",
        n_tokens=8_000_000_000,
        batch_size=131_072,
        start_bias="median",
        sparsity=lambda d_in, raw: TopK(k=32, auxk=1 / 32, k_aux=max(1, d_in // 2)),
        fit=FitConfig(
            lr="auto",
            lr_warmup_fraction=0.0,
            lr_decay_fraction=0.0,
            sparsity_warmup_fraction=0.0,
            clip_grad_norm=1.0,
            adam_eps=6.25e-10,
        ),
    ),
    Recipe(
        name="batch_topk",
        source="Bussmann et al. 2024 (arXiv:2412.06410) and its code",
        summary="BatchTopK with AuxK of 512 latents",
        differs="each input is scaled by the mean norm of all, not by its own; a latent is dead after a hundredth of "
        "the run (published: 5 batches)",
        n_tokens=500_000_000,
        batch_size=4096,
        sparsity=lambda d_in, raw: BatchTopK(k=32, auxk=1 / 32, k_aux=512),
        dead_after_share=0.01,
        fit=FitConfig(
            lr=3e-4,
            betas=(0.9, 0.99),
            lr_warmup_fraction=0.0,
            lr_decay_fraction=0.0,
            sparsity_warmup_fraction=0.0,
            clip_grad_norm=0.0,
        ),
    ),
    Recipe(
        name="gemma_scope_jumprelu",
        source="Rajamanoharan et al. 2024 (arXiv:2407.14435), Lieberum et al. 2024 (arXiv:2408.05147)",
        summary="JumpReLU with an L0 penalty",
        differs="thresholds are trained as they are and not by their logarithm; lr warms up linearly from 0 and not "
        "by a cosine from a tenth; the encoder starts as the decoder's transpose; inputs are centred on their"
        " mean, and biases in larger units move more slowly; of the released weights (1e-4 to 4e-3) the one "
        "of L0 about 65 is taken, 5e-4 at E||x||^2 = 1",
        n_tokens=4_000_000_000,
        batch_size=4096,
        sparsity=_gemma_scope,
        fit=FitConfig(
            lr=7e-5,
            betas=(0.0, 0.999),
            lr_warmup_fraction=1000 * 4096 / 4e9,
            lr_decay_fraction=0.0,
            sparsity_warmup_fraction=10_000 * 4096 / 4e9,
            clip_grad_norm=0.0,
        ),
    ),
    Recipe(
        name="saev_clip",
        source="Stevens et al. 2025 (arXiv:2502.06755), the released CLIP ViT-B/16 run",
        summary="L1 on patches at a high learning rate",
        differs="inputs are scaled by their root mean square norm and not by their mean norm",
        n_tokens=100_000_000,
        batch_size=16_384,
        sparsity=_l1(8e-4, LossScale(inputs="sqrt_d", errors="mean")),
        fit=FitConfig(
            lr=3e-3,
            lr_warmup_fraction=500 / 6104,
            lr_decay_fraction=0.0,
            sparsity_warmup_fraction=500 / 6104,
            clip_grad_norm=0.0,
        ),
    ),
    Recipe(
        name="classic_kl",
        source="Ng 2011 (CS294A lecture notes, Sparse autoencoder)",
        summary="sigmoid latents held at a mean activation of 0.05 by a KL divergence",
        differs="the decoder is linear, the weight is 6 against the whole squared error (published: beta = 3 against "
        "half of it, on pixels between 0.1 and 0.9); Adam in place of L-BFGS, no weight decay",
        n_tokens=20_000_000,
        batch_size=4096,
        sparsity=lambda d_in, raw: KLDivergence(rho=0.05, weight=6.0),
        decoder_norm="free",
        fit=FitConfig(lr=1e-3, lr_warmup_fraction=0.05, lr_decay_fraction=0.2, sparsity_warmup_fraction=0.05),
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""Every recipe by name; docs/recipes.md is their table."""
