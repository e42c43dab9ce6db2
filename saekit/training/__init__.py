"""Training: `fit`, the one loop for every autoencoder; runs on disk that go on after a kill; the report of a run."""

from saekit.training.config import FitConfig, FitResult
from saekit.training.fit import fit
from saekit.training.pretrain import pretrain
from saekit.training.rows import ShuffledRows

__all__ = ["FitConfig", "FitResult", "ShuffledRows", "fit", "pretrain"]
