"""Numbers about a checkpoint: reconstruction, faithfulness, usefulness, and the baselines they stand beside."""

from saekit.evaluation.baselines import (
    Baseline,
    identity,
    mean_ablation,
    pca,
    pca_of_equal_fvu,
    random_dictionary,
    zero_ablation,
)
from saekit.evaluation.faithfulness import (
    NextToken,
    class_agreement,
    class_losses,
    knn_accuracy,
    next_token_losses,
    recovered_representation,
    representations,
)
from saekit.evaluation.intervals import Interval, bootstrap_ratio
from saekit.evaluation.latents import CountingReconstruction, LatentUse
from saekit.evaluation.reconstruction import Reconstruction, measure_reconstruction
from saekit.evaluation.result import Evaluation, Method

__all__ = [
    "Baseline",
    "CountingReconstruction",
    "Evaluation",
    "Interval",
    "LatentUse",
    "Method",
    "NextToken",
    "Reconstruction",
    "bootstrap_ratio",
    "class_agreement",
    "class_losses",
    "identity",
    "knn_accuracy",
    "mean_ablation",
    "measure_reconstruction",
    "next_token_losses",
    "pca",
    "pca_of_equal_fvu",
    "random_dictionary",
    "recovered_representation",
    "representations",
    "zero_ablation",
]
