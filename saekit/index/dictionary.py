"""What the weights alone say about the features: norms, nearest decoder rows, logit lens."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

N_NEIGHBOURS = 16
N_LOGITS = 20
_ENTRIES_AT_ONCE = 2**25


@torch.no_grad()
def dictionary_arrays(
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    unembedding: tuple[Float[Tensor, "d_in vocab"], Float[Tensor, " d_in"] | None] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of an index that need no activations, by name; computed in float32 on the device of `W_dec`."""
    W_enc, W_dec = W_enc.float(), W_dec.float()
    norm = W_dec.norm(dim=1)
    features, cosines = nearest_rows(W_dec, min(N_NEIGHBOURS, len(W_dec) - 1))
    alone = features.shape[1] == 0
    arrays: dict[str, Tensor] = {
        "statistics/decoder_norm": norm,
        "statistics/encoder_decoder_cosine": torch.nn.functional.cosine_similarity(W_enc.T, W_dec, dim=1),
        "statistics/nearest_feature": torch.full_like(norm, -1, dtype=torch.int32) if alone else features[:, 0],
        "statistics/nearest_cosine": torch.full_like(norm, torch.nan) if alone else cosines[:, 0],
        "neighbours/features": features,
        "neighbours/cosines": cosines,
    }
    if unembedding is not None:
        W_U, norm_weight = unembedding
        arrays |= logit_lens(W_dec, W_U.to(W_dec), None if norm_weight is None else norm_weight.to(W_dec), N_LOGITS)
    return {name: tensor.cpu().contiguous().numpy() for name, tensor in arrays.items()}


def nearest_rows(W: Float[Tensor, "d_sae d_in"], n: int) -> tuple[Shaped[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """Ids (int32) and cosines of the `n` other rows nearest to each row, nearest first; a zero row has cosine 0."""
    unit = torch.nn.functional.normalize(W, dim=1)
    features, cosines = [], []
    rows_at_once = max(1, _ENTRIES_AT_ONCE // len(W))
    for start in range(0, len(W), rows_at_once):
        rows = torch.arange(start, min(start + rows_at_once, len(W)), device=W.device)
        cosine = unit[rows] @ unit.T
        cosine[rows - start, rows] = -torch.inf
        best = cosine.topk(n, dim=1)
        features.append(best.indices.int())
        cosines.append(best.values.clamp(-1, 1))
    return torch.cat(features), torch.cat(cosines)


def logit_lens(
    W_dec: Float[Tensor, "d_sae d_in"],
    W_U: Float[Tensor, "d_in vocab"],
    norm_weight: Float[Tensor, " d_in"] | None,
    n: int,
) -> dict[str, Tensor]:
    """The `n` tokens whose logits each decoder row raises most and lowers most.

    logits_i = (W_dec[i] * norm_weight) W_U, minus their mean over the vocabulary, which softmax ignores. The final
    norm's division and, in a LayerNorm, its centring depend on the rest of the stream and are left out, so values
    compare tokens of one feature, not features. After nostalgebraist's "logit lens" (2020) applied to directions.
    """
    n = min(n, W_U.shape[1])
    W_U = W_U - W_U.mean(dim=1, keepdim=True)
    directions = W_dec if norm_weight is None else W_dec * norm_weight
    found: dict[str, list[Tensor]] = {}
    for part in directions.split(max(1, _ENTRIES_AT_ONCE // W_U.shape[1])):
        logits = part @ W_U
        for name, is_largest in (("promoted", True), ("suppressed", False)):
            best = logits.topk(n, dim=1, largest=is_largest)
            found.setdefault(f"logits/{name}", []).append(best.indices.int())
            found.setdefault(f"logits/{name}_values", []).append(best.values)
    return {name: torch.cat(parts) for name, parts in found.items()}
