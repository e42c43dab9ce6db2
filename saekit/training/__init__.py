"""Training: `fit`, the one loop for every autoencoder; runs on disk that go on after a kill; the report of a run."""

from saekit.training.fit import FitConfig, FitResult, fit

__all__ = ["FitConfig", "FitResult", "fit"]
