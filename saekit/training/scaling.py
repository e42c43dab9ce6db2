"""What a published weight of a sparsity penalty is in saekit's units, and a warning when one is evidently in others.

A weight means nothing without two facts: how large the inputs of the loss are, and whether squared errors are summed or
averaged over features. With inputs s times as large, errors grow with s^2, an L1 norm with s, and an L0 not at all.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal

from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.autoencoders.sparsity import Gated, JumpRelu, PAnneal, Relu
from saekit.errors import ConfigError

Penalty = Literal["l1", "l0"]

LEAST = 0.01
"""Weights below this are evidently in other units."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """The units of a loss."""

    inputs: Literal["sqrt_d", "unit", "raw"] = "sqrt_d"
    """E||x||^2 of its inputs: d_in, 1, or that of the activations as they are."""
    errors: Literal["sum", "mean"] = "sum"
    """Whether squared errors are summed or averaged over features."""


SAEKIT = LossScale()
"""saekit's own: inputs are brought to E||x - mean||^2 = d_in, errors are summed over features."""


def convert_weight(
    weight: float,
    d_in: int,
    *,
    penalty: Penalty = "l1",
    given: LossScale,
    wanted: LossScale = SAEKIT,
    mean_squared_norm: float | None = None,
) -> float:
    """The weight that gives the same optimum with losses in units of `wanted` as `weight` with those of `given`.

    `mean_squared_norm` is E||x - mean||^2 of the activations as they are (`store.moments()[1]`), asked for when one of
    the scales is raw. Raises `ConfigError` when it is missing or not above 0.
    """
    ratio = math.sqrt(_squared_norm(wanted, d_in, mean_squared_norm) / _squared_norm(given, d_in, mean_squared_norm))
    summed = weight * (d_in if given.errors == "mean" else 1)
    scaled = summed * (ratio if penalty == "l1" else ratio**2)
    return scaled / (d_in if wanted.errors == "mean" else 1)


def _squared_norm(scale: LossScale, d_in: int, mean_squared_norm: float | None) -> float:
    if scale.inputs != "raw":
        return float(d_in) if scale.inputs == "sqrt_d" else 1.0
    if mean_squared_norm is None or not 0 < mean_squared_norm < math.inf:
        raise ConfigError(
            f"A weight for raw activations needs their mean_squared_norm above 0, got {mean_squared_norm}. "
            "A store has it: store.moments()[1]"
        )
    return mean_squared_norm


def warn_about_weight(sae: SparseAutoencoder) -> str | None:
    """Log, and return, what is evidently wrong with the penalty's weight of `sae`; None when nothing is.

    Its input moments must be set. With an L1 weight above 2 sqrt(d_in), or an L0 weight above d_in, a latent costs more
    than it can save on a row of mean norm; with one below `LEAST` the penalty is lost in rounding. A weight of 0 is
    meant, and one with a target L0 finds its own scale.
    """
    spec, d_in = sae.config.sparsity, sae.config.d_in
    if isinstance(spec, (Relu, Gated)):
        name, weight, penalty, most = "l1", spec.l1, "l1", 2 * math.sqrt(d_in)
    elif isinstance(spec, PAnneal) or (isinstance(spec, JumpRelu) and spec.loss == "step"):
        is_l1 = isinstance(spec, PAnneal)
        name, weight, penalty = "weight", spec.weight, "l1" if is_l1 else "l0"
        most = 2 * math.sqrt(d_in) if is_l1 else float(d_in)
    else:
        return None
    if weight == 0 or sae.config.target_l0 is not None or LEAST <= weight <= most:
        return None
    raw = d_in / float(sae.input_scale) ** 2
    known: dict[str, LossScale] = {
        "errors averaged over features": LossScale(errors="mean"),
        "raw activations": LossScale(inputs="raw"),
        "raw activations and averaged errors": LossScale(inputs="raw", errors="mean"),
        "inputs of mean squared norm 1": LossScale(inputs="unit"),
    }
    options = []
    for text, given in known.items():
        value = convert_weight(
            weight, d_in, penalty="l1" if penalty == "l1" else "l0", given=given, mean_squared_norm=raw
        )
        if LEAST <= value <= most:
            options.append(f"{value:.3g} if it was meant for {text}")
    kind, size = type(spec).__name__, "large" if weight > most else "small"
    message = (
        f"{kind}.{name}={weight:g} is {size}: errors are summed over {d_in} features of inputs scaled to "
        f"E||x||^2 = {d_in}, where useful weights lie in {LEAST:g} to {most:.0f}."
    )
    if options:
        message += f" It would be {', '.join(options)}."
    logger.warning("%s See saekit.training.convert_weight.", message)
    return message
