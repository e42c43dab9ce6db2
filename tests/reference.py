"""The equations of every sparsity in float64 NumPy, written from the papers and not from the library.

x [batch d_in] is a raw activation; weights is a dict of arrays W_enc [d_in d_sae], b_enc, W_dec [d_sae d_in], b_dec,
input_mean, input_scale, and those of the sparsity (threshold, r_mag, b_mag, p). A new sparsity adds its `latents` and
`penalty` here.
"""

import numpy as np

import saekit as sk

Arrays = dict[str, np.ndarray]


def normalized(x: np.ndarray, weights: Arrays) -> np.ndarray:
    return (x - weights["input_mean"]) * weights["input_scale"]


def pre_activations(x: np.ndarray, weights: Arrays) -> np.ndarray:
    return (normalized(x, weights) - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]


def latents(spec: object, pre_acts: np.ndarray, weights: Arrays) -> np.ndarray:
    """What `encode` gives: each row by itself."""
    if isinstance(spec, (sk.Relu, sk.PAnneal)):
        return np.maximum(pre_acts, 0)
    if isinstance(spec, sk.KLDivergence):
        return 1 / (1 + np.exp(-pre_acts))
    if isinstance(spec, sk.TopK):
        return largest(pre_acts, spec.k)
    if isinstance(spec, (sk.BatchTopK, sk.MatryoshkaBatchTopK, sk.JumpRelu)):
        return np.where(pre_acts > weights["threshold"], pre_acts, 0)
    if isinstance(spec, sk.Gated):
        magnitudes = np.exp(weights["r_mag"]) * (pre_acts - weights["b_enc"]) + weights["b_mag"]
        return np.where(pre_acts > 0, np.maximum(magnitudes, 0), 0)
    raise NotImplementedError(f"Write the equation of {type(spec).__name__} here.")


def training_latents(spec: object, pre_acts: np.ndarray, weights: Arrays) -> np.ndarray:
    """What a training step decodes, for which a sparsity may look at the whole batch."""
    if isinstance(spec, (sk.BatchTopK, sk.MatryoshkaBatchTopK)):
        return largest(pre_acts.reshape(1, -1), spec.k * len(pre_acts)).reshape(pre_acts.shape)
    return latents(spec, pre_acts, weights)


def largest(pre_acts: np.ndarray, k: int) -> np.ndarray:
    kth = np.sort(pre_acts, axis=1)[:, -k][:, None]
    return np.where(pre_acts >= kth, np.maximum(pre_acts, 0), 0)


def decoded(latents: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    return (latents @ weights["W_dec"] + weights["b_dec"]) / weights["input_scale"] + weights["input_mean"]


def loss(
    spec: object,
    x: np.ndarray,
    weights: Arrays,
    is_dead: np.ndarray,
    decoder_is_free: bool,
    frozen: Arrays | None = None,
) -> float:
    """Total training loss of the batch, for a KLDivergence with no memory of earlier batches.

    `frozen` is the decoder where a loss stops gradients at it, for slopes; by default the decoder of `weights`.
    """
    pre_acts, x_n = pre_activations(x, weights), normalized(x, weights)
    found = training_latents(spec, pre_acts, weights)
    error = x_n - (found @ weights["W_dec"] + weights["b_dec"])
    total = mean_square(error) + penalty(spec, pre_acts, found, error, weights, is_dead, decoder_is_free)
    if isinstance(spec, sk.MatryoshkaBatchTopK):
        for share in spec.prefix_shares:
            m = round(share * found.shape[1])
            total += mean_square(x_n - (found[:, :m] @ weights["W_dec"][:m] + weights["b_dec"]))
    if isinstance(spec, sk.Gated):
        decoder = frozen or weights
        total += mean_square(x_n - (np.maximum(pre_acts, 0) @ decoder["W_dec"] + decoder["b_dec"]))
    return float(total)


def mean_square(error: np.ndarray) -> float:
    return float((error**2).sum(1).mean())


def penalty(
    spec: object,
    pre_acts: np.ndarray,
    found: np.ndarray,
    error: np.ndarray,
    weights: Arrays,
    is_dead: np.ndarray,
    decoder_is_free: bool,
) -> float:
    norms = np.sqrt((weights["W_dec"] ** 2).sum(1)) if decoder_is_free else np.ones(len(is_dead))
    if isinstance(spec, sk.Relu):
        return spec.l1 * float((found * norms).sum(1).mean())
    if isinstance(spec, sk.PAnneal):
        return spec.weight * float((np.where(found > 0, found * norms, 0) ** weights["p"]).sum(1).mean())
    if isinstance(spec, sk.Gated):
        return spec.l1 * float((np.maximum(pre_acts, 0) * norms).sum(1).mean())
    if isinstance(spec, sk.JumpRelu):
        lack = np.maximum(weights["threshold"] - pre_acts, 0) * norms * is_dead
        return spec.weight * jump_penalty(spec, found, norms) + spec.pre_act * float(lack.sum(1).mean())
    if isinstance(spec, sk.KLDivergence):
        rho, rho_hat = spec.rho, found.mean(0)
        kl = rho * np.log(rho / rho_hat) + (1 - rho) * np.log((1 - rho) / (1 - rho_hat))
        return spec.weight * float(kl.sum())
    if isinstance(spec, (sk.TopK, sk.BatchTopK, sk.MatryoshkaBatchTopK)):
        if not is_dead.any():
            return 0.0
        k_aux = min(spec.k_aux or error.shape[1] // 2, int(is_dead.sum()))
        missed = error - largest(pre_acts[:, is_dead], k_aux) @ weights["W_dec"][is_dead]
        return spec.auxk * error.shape[1] * float((missed**2).sum() / (error**2).sum())
    raise NotImplementedError(f"Write the equation of {type(spec).__name__} here.")


def jump_penalty(spec: sk.JumpRelu, found: np.ndarray, norms: np.ndarray) -> float:
    l0 = (found > 0).sum(1)
    if spec.loss == "step":
        return float(l0.mean())
    if spec.loss == "quadratic":
        return float((2 / spec.target * (l0 - spec.target) ** 2).mean())
    return float(np.tanh(spec.tanh_scale * found * norms).sum(1).mean())
