"""The equations of every sparsity in float64 NumPy, written from the papers and not from the library.

x [batch d_in] is a raw activation; weights is a dict of arrays W_enc [d_in d_sae], b_enc, W_dec [d_sae d_in], b_dec,
input_mean, input_scale. A new sparsity adds its `latents` and `penalty` here.
"""

import numpy as np

import saekit as sk


def normalized(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    return (x - weights["input_mean"]) * weights["input_scale"]


def pre_activations(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    return (normalized(x, weights) - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]


def latents(spec: object, pre_acts: np.ndarray) -> np.ndarray:
    if isinstance(spec, sk.Relu):
        return np.maximum(pre_acts, 0)
    if isinstance(spec, sk.KLDivergence):
        return 1 / (1 + np.exp(-pre_acts))
    if isinstance(spec, sk.TopK):
        return largest(pre_acts, spec.k)
    raise NotImplementedError(f"Write the equation of {type(spec).__name__} here.")


def largest(pre_acts: np.ndarray, k: int) -> np.ndarray:
    kth = np.sort(pre_acts, axis=1)[:, -k][:, None]
    return np.where(pre_acts >= kth, np.maximum(pre_acts, 0), 0)


def decoded(latents: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    return (latents @ weights["W_dec"] + weights["b_dec"]) / weights["input_scale"] + weights["input_mean"]


def loss(
    spec: object, x: np.ndarray, weights: dict[str, np.ndarray], is_dead: np.ndarray, decoder_is_free: bool
) -> float:
    """Total training loss of the batch, for a KLDivergence with no memory of earlier batches."""
    pre_acts = pre_activations(x, weights)
    error = normalized(x, weights) - (latents(spec, pre_acts) @ weights["W_dec"] + weights["b_dec"])
    return float((error**2).sum(1).mean() + penalty(spec, pre_acts, error, weights, is_dead, decoder_is_free))


def penalty(
    spec: object,
    pre_acts: np.ndarray,
    error: np.ndarray,
    weights: dict[str, np.ndarray],
    is_dead: np.ndarray,
    decoder_is_free: bool,
) -> float:
    if isinstance(spec, sk.Relu):
        norms = np.sqrt((weights["W_dec"] ** 2).sum(1)) if decoder_is_free else 1.0
        return spec.l1 * float((latents(spec, pre_acts) * norms).sum(1).mean())
    if isinstance(spec, sk.KLDivergence):
        rho, rho_hat = spec.rho, latents(spec, pre_acts).mean(0)
        kl = rho * np.log(rho / rho_hat) + (1 - rho) * np.log((1 - rho) / (1 - rho_hat))
        return spec.weight * float(kl.sum())
    if isinstance(spec, sk.TopK):
        if not is_dead.any():
            return 0.0
        k_aux = min(spec.k_aux or error.shape[1] // 2, int(is_dead.sum()))
        missed = error - largest(pre_acts[:, is_dead], k_aux) @ weights["W_dec"][is_dead]
        return spec.auxk * error.shape[1] * float((missed**2).sum() / (error**2).sum())
    raise NotImplementedError(f"Write the equation of {type(spec).__name__} here.")
