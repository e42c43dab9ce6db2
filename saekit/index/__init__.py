"""The feature index: what every latent fires on, read with NumPy alone."""

from saekit.index.annotations import Annotation, Annotations
from saekit.index.feature import Feature
from saekit.index.reader import FeatureIndex
from saekit.index.results import Activations, FeatureExample

__all__ = ["Activations", "Annotation", "Annotations", "Feature", "FeatureExample", "FeatureIndex"]
