"""Training: `fit`, the one loop for every autoencoder; runs on disk that go on after a kill; the report of a run."""

from saekit.training.config import FitConfig, FitResult
from saekit.training.fit import fit
from saekit.training.health import Health, measure_health
from saekit.training.pretrain import pretrain
from saekit.training.recipes import RECIPES, Recipe, get_recipe
from saekit.training.rows import ShuffledRows
from saekit.training.scaling import LossScale, convert_weight

__all__ = [
    "RECIPES",
    "FitConfig",
    "FitResult",
    "Health",
    "LossScale",
    "Recipe",
    "ShuffledRows",
    "convert_weight",
    "fit",
    "get_recipe",
    "measure_health",
    "pretrain",
]
