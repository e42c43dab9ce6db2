"""Files of other projects' layouts, made here tensor by tensor, each with its project's definition of encoding.

The definitions are NumPy in float64, written from the formats' descriptions and not from saekit's readers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, F = 12, 40
Definition = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class Foreign:
    """A file or folder, what its project gives for an input, and what has to be said to read it."""

    path: Path
    define: Definition
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    hook_point: str | None = None
    token_norm: str = "none"


def numbers(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """Float32 values as float64: what a file can hold exactly."""
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32).astype(np.float64)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: tensor(array) for name, array in arrays.items()}


class Weights:
    """The usual arrays: W_enc [d F], W_dec [F d], biases, thresholds."""

    def __init__(self, seed: int = 0, d_out: int = D) -> None:
        self.W_enc = numbers(D, F, seed=seed, scale=0.4)
        self.W_dec = numbers(F, d_out, seed=seed + 1, scale=0.4)
        self.b_enc = numbers(F, seed=seed + 2, scale=0.3)
        self.b_dec = numbers(d_out, seed=seed + 3)
        self.threshold = np.abs(numbers(F, seed=seed + 4, scale=0.5)).astype(np.float32).astype(np.float64) + 0.125


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def topk(x: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(x)
    order = np.argsort(-x, axis=1, kind="stable")[:, :k]
    np.put_along_axis(kept, order, np.take_along_axis(x, order, 1), 1)
    return kept


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), mean, std


def to_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def gemma_scope_1(root: Path, small_w: bool = False) -> Foreign:
    w = Weights(1)
    folder = root / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    names = ("w_enc", "w_dec") if small_w else ("W_enc", "W_dec")
    arrays = {names[0]: w.W_enc, names[1]: w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec, "threshold": w.threshold}
    np.savez(folder / "params.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = x @ w.W_enc + w.b_enc
        latents = pre * (pre > w.threshold)
        return latents, latents @ w.W_dec + w.b_dec

    return Foreign(folder, define, "gemma_scope", hook_point="layers.20")


def gemma_scope_1_embedding(root: Path) -> Foreign:
    of = gemma_scope_1(root)
    folder = root / "gemma-scope-2b-pt-res" / "embedding" / "width_4k"
    folder.mkdir(parents=True)
    (of.path / "params.npz").rename(folder / "params.npz")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, row = of.define(
            x / np.sqrt(D)
        )  # trained on rows of the embedding; the stream holds sqrt(d) times them
        return latents, row * np.sqrt(D)

    return Foreign(folder, define, "gemma_scope")


def gemma_scope_2(root: Path, transcoder: bool = False) -> Foreign:
    w = Weights(2)
    skip = numbers(D, D, seed=99, scale=0.2)
    folder = root / "gemma-scope-2-1b-pt" / ("transcoder" if transcoder else "resid_post") / "layer_9_width_16k"
    arrays = {"w_enc": w.W_enc, "w_dec": w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec, "threshold": w.threshold}
    hooks = ("model.layers.9.output", "model.layers.9.output")
    if transcoder:
        arrays["affine_skip_connection"] = skip
        hooks = ("model.layers.9.pre_feedforward_layernorm.output", "model.layers.9.post_feedforward_layernorm.output")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": transcoder}
    to_json(folder / "config.json", {**config, "hf_hook_point_in": hooks[0], "hf_hook_point_out": hooks[1]})
    save_file(tensors(arrays), folder / "params.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = x @ w.W_enc + w.b_enc
        latents = pre * (pre > w.threshold)
        return latents, latents @ w.W_dec + w.b_dec + (x @ skip if transcoder else 0)

    return Foreign(folder, define, "gemma_scope", hook_point=None if transcoder else "layers.9")


def llama_scope(root: Path) -> Foreign:
    w = Weights(3)
    folder = root / "Llama3_1-8B-Base-L15R-8x"
    norm, threshold = 5.0, 0.25
    hook = "blocks.15.hook_resid_post"
    config = {
        "d_model": D,
        "d_sae": F,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "act_fn": "jumprelu",
        "jump_relu_threshold": threshold,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
    }
    to_json(folder / "hyperparams.json", config)
    (folder / "checkpoints").mkdir()
    arrays = {
        "encoder.weight": w.W_enc.T,
        "encoder.bias": w.b_enc,
        "decoder.weight": w.W_dec.T,
        "decoder.bias": w.b_dec,
    }
    save_file(tensors(arrays), folder / "checkpoints" / "final.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.sqrt(D) / norm
        pre = (x * s) @ w.W_enc + w.b_enc
        # Active where the latent in raw units, pre / s, times its decoder's norm is above the threshold.
        latents = pre * (pre / s * np.linalg.norm(w.W_dec, axis=1) > threshold)
        return latents, (latents @ w.W_dec + w.b_dec) / s

    return Foreign(folder, define, "llama_scope", hook_point="layers.15")


def llama_scope_r1(root: Path) -> Foreign:
    w = Weights(4)
    folder = root / "400M-Slimpajama-400M-OpenR1-Math-220k" / "L15R"
    norm = 7.0
    hook = "blocks.15.hook_resid_post"
    config = {
        "d_model": D,
        "expansion_factor": F / D,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
    }
    to_json(folder / "config.json", {**config, "d_sae": F})
    arrays = {
        "encoder.weight": w.W_enc.T,
        "encoder.bias": w.b_enc,
        "decoder.weight": w.W_dec.T,
        "decoder.bias": w.b_dec,
        "log_jumprelu_threshold": np.log(w.threshold),
    }
    scalars = {f"dataset_average_activation_norm.{hook}": torch.tensor(norm)}
    save_file({**tensors(arrays), **scalars}, folder / "sae_weights.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.sqrt(D) / norm
        pre = (x * s) @ w.W_enc + w.b_enc
        latents = pre * (pre > w.threshold)
        return latents, (latents @ w.W_dec + w.b_dec) / s

    return Foreign(folder, define, "llama_scope", hook_point="layers.15")


def llamascopium(root: Path, act_fn: str, norm_activation: str = "dataset-wise", transcoder: bool = False) -> Foreign:
    w = Weights(5)
    folder = root / f"llamascopium-{act_fn}-{norm_activation}-{transcoder}"
    hooks = ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_pre")
    if transcoder:
        hooks = ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    average = {hooks[0]: 4.0, hooks[1]: 2.5 if transcoder else 4.0}
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "hook_point_in": hooks[0],
        "hook_point_out": hooks[1],
        "use_decoder_bias": True,
        "act_fn": act_fn,
        "norm_activation": norm_activation,
        "sparsity_include_decoder_norm": True,
        "top_k": 6,
        "use_glu_encoder": False,
    }
    to_json(folder / "config.json", config)
    arrays = {"W_E": w.W_enc, "b_E": w.b_enc, "W_D": w.W_dec, "b_D": w.b_dec}
    if act_fn == "jumprelu":
        arrays["activation_function.log_jumprelu_threshold"] = np.log(w.threshold)
    norms = {f"dataset_average_activation_norm.{hook}": torch.tensor(norm) for hook, norm in average.items()}
    save_file(
        {**tensors(arrays), **(norms if norm_activation == "dataset-wise" else {})}, folder / "sae_weights.safetensors"
    )

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s_in = s_out = np.ones((len(x), 1))
        if norm_activation == "dataset-wise":
            s_in, s_out = np.sqrt(D) / average[hooks[0]], np.sqrt(D) / average[hooks[1]]
        if norm_activation == "token-wise":
            s_in = s_out = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
        norms = np.linalg.norm(w.W_dec, axis=1)
        weighed = ((x * s_in) @ w.W_enc + w.b_enc) * norms
        if act_fn == "relu":
            latents = relu(weighed) / norms
        elif act_fn == "jumprelu":
            latents = weighed * (weighed > w.threshold) / norms
        else:
            latents = relu(topk(weighed, 6)) / norms
        x_hat = (latents @ w.W_dec + w.b_dec) / s_out
        # A TopK is read with latents times decoder norms: the products are what its rows choose by.
        return latents * (norms if act_fn == "topk" else 1), x_hat

    named = None if transcoder else "layers.3:input"
    return Foreign(
        folder,
        define,
        "llamascopium",
        hook_point=named,
        token_norm="rms" if norm_activation == "token-wise" else "none",
    )


def openai(root: Path, kind: str = "TopK") -> Foreign:
    w = Weights(6)
    path = root / "resid_post_mlp_layer_6.pt"
    saved: dict[str, Any] = tensors(
        {"pre_bias": w.b_dec, "encoder.weight": w.W_enc.T, "latent_bias": w.b_enc, "decoder.weight": w.W_dec.T}
    )
    saved["stats_last_nonzero"] = torch.zeros(F, dtype=torch.long)
    saved["latents_activation_frequency"] = torch.zeros(F, dtype=torch.long)
    saved["latents_mean_square"] = torch.zeros(F)
    saved["activation"] = kind
    if kind == "TopK":
        saved["activation_state_dict"] = {"k": 5, "postact_fn": "ReLU"}
    torch.save(saved, path)

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_n, mean, std = layer_norm(x) if kind == "TopK" else (x, 0, 1)
        pre = (x_n - w.b_dec) @ w.W_enc + w.b_enc
        latents = relu(topk(pre, 5)) if kind == "TopK" else relu(pre)
        return latents, (latents @ w.W_dec + w.b_dec) * std + mean

    norm = "layer_norm" if kind == "TopK" else "none"
    return Foreign(path, define, "openai", hook_point="layers.6", token_norm=norm)


def qwen_scope(root: Path) -> Foreign:
    w = Weights(7)
    folder = root / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_7"
    folder.mkdir()
    path = folder / "layer14.sae.pt"
    torch.save(tensors({"W_enc": w.W_enc.T, "W_dec": w.W_dec.T, "b_enc": w.b_enc, "b_dec": w.b_dec}), path)

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents = relu(topk(x @ w.W_enc + w.b_enc, 7))
        return latents, latents @ w.W_dec + w.b_dec

    return Foreign(path, define, "qwen_scope", hook_point="layers.14")


def saev(root: Path, schema: str, activation: str = "Relu") -> Foreign:
    w = Weights(8)
    path = root / "sae.pt"
    k, threshold, has_threshold = 5, 0.75, schema == "5" and activation == "BatchTopK"
    base = {"n_reinit_samples": 10, "remove_parallel_grads": True, "normalize_w_dec": True, "seed": 0}
    old = {"d_vit": D, "d_sae": F, **base}
    new = {"d_model": D, "d_sae": F, **base}
    described = {"cls": activation, "params": {} if activation == "Relu" else {"top_k": k}}
    headers = {
        "none": {**old, "sparsity_coeff": 4e-4, "ghost_grads": False},
        "1a": {"schema": 1, "cls": activation, "cfg": {**old, "top_k": k}},
        "1b": {"schema": 1, "cls": "SparseAutoencoderConfig", "cfg": {**old, "activation": described}},
        **{str(n): {"schema": n, "cfg": {**(old if n < 4 else new), "activation": described}} for n in (2, 3, 4, 5)},
    }
    arrays = tensors({"W_enc": w.W_enc, "b_enc": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec})
    if has_threshold:
        arrays["activation.threshold"] = torch.tensor(threshold)
    with open(path, "wb") as file:
        file.write((json.dumps(headers[schema]) + "\n").encode())
        torch.save(arrays, file)

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = (x - w.b_dec if schema == "none" else x) @ w.W_enc + w.b_enc
        if activation == "Relu":
            latents = relu(pre)
        elif has_threshold:
            latents = pre * (pre > threshold)
        else:
            latents = topk(pre, k)
        return latents, latents @ w.W_dec + w.b_dec

    return Foreign(path, define, "saev")


def saev_with_moments(root: Path) -> Foreign:
    """What saev was trained on is in no file of its: (x - mean) / norm, measured on the data."""
    of = saev(root, "5")
    mean, scale = numbers(D, seed=42), 0.25
    options = {"input_mean": tensor(mean), "input_scale": scale}

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, x_hat = of.define((x - mean) * scale)
        return latents, x_hat / scale + mean

    return Foreign(of.path, define, "saev", options)


def overcomplete(root: Path, kind: str, encoder: str = "encoder.final_block.") -> Foreign:
    w = Weights(9)
    path = root / "overcomplete.pth"
    gain, offset, mean = (numbers(F, seed=seed, scale=0.5) for seed in (21, 22, 23))
    variance = np.abs(numbers(F, seed=24)) + 0.5
    arrays = {
        f"{encoder}0.weight": w.W_enc.T,
        f"{encoder}0.bias": w.b_enc,
        f"{encoder}1.weight": gain,
        f"{encoder}1.bias": offset,
        f"{encoder}1.running_mean": mean,
        f"{encoder}1.running_var": variance,
        "dictionary._weights": w.W_dec,
    }
    if kind == "jump":
        arrays["thresholds"] = np.log(w.threshold)
    counted = {f"{encoder}1.num_batches_tracked": torch.tensor(100)}
    torch.save({**tensors(arrays), **counted}, path)
    options = {"topk": {"k": 6}, "batchtopk": {"threshold": 0.5}}.get(kind, {})

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = gain * ((x @ w.W_enc + w.b_enc) - mean) / np.sqrt(variance + 1e-5) + offset
        latents = relu(pre)
        if kind == "jump":
            latents = np.where(latents < w.threshold, 0, latents)
        if kind == "topk":
            latents = topk(latents, 6)
        if kind == "batchtopk":
            latents = latents * (latents >= 0.5)
        return latents, latents @ w.W_dec

    return Foreign(path, define, "overcomplete", options)


def prisma(root: Path, kind: str, norm: str = "layer_norm") -> Foreign:
    w = Weights(10)
    r_mag, b_mag = numbers(F, seed=31, scale=0.2), numbers(F, seed=32, scale=0.2)
    b_out, skip = numbers(D, seed=33), numbers(D, D, seed=34, scale=0.2)
    folder = root / f"sparse-autoencoder-clip-{kind}-{norm}"
    is_transcoder = kind == "transcoder"
    config = {
        "architecture": "gated" if kind == "gated" else "standard",
        "d_in": D,
        "d_sae": F,
        "hook_point_layer": 9,
        "layer_subtype": "hook_resid_post",
        "activation_fn_str": "topk" if kind == "topk" else "relu",
        "activation_fn_kwargs": {"k": 6} if kind == "topk" else {},
        "normalize_activations": norm,
        "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "is_transcoder": is_transcoder,
    }
    to_json(folder / "config.json", config)
    arrays = {"W_enc": w.W_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "b_enc": w.b_enc}
    if kind == "gated":
        del arrays["b_enc"]
        arrays |= {"b_gate": w.b_enc, "r_mag": r_mag, "b_mag": b_mag}
    if is_transcoder:
        arrays |= {"b_dec_out": b_out, "W_skip": skip}
    torch.save(tensors(arrays), folder / "weights.pt")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_n, mean, std = layer_norm(x) if norm == "layer_norm" else (x, 0, 1)
        product = (x_n - w.b_dec) @ w.W_enc
        if kind == "gated":
            latents = (product + w.b_enc > 0) * relu(product * np.exp(r_mag) + b_mag)
        else:
            latents = relu(product + w.b_enc)
        if kind == "topk":
            latents = topk(latents, 6)
        if is_transcoder:
            return latents, latents @ w.W_dec + b_out + x @ (np.eye(D) + skip.T)
        return latents, (latents @ w.W_dec + w.b_dec) * std + mean

    token_norm = "layer_norm" if norm == "layer_norm" else "none"
    return Foreign(folder, define, "prisma", hook_point=None if is_transcoder else "layers.9", token_norm=token_norm)


def saelens_legacy(root: Path, kind: str) -> Foreign:
    w = Weights(11)
    folder = root / "blocks.8.hook_resid_pre"
    factor = np.abs(numbers(F, seed=41)) + 0.5
    config = {
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
        "hook_point": "blocks.8.hook_resid_pre",
        "model_name": "gpt2-small",
        "architecture": "jumprelu" if kind == "jumprelu" else "standard",
        "activation_fn_str": "topk" if kind == "topk" else "relu",
        "activation_fn_kwargs": {"k": 6} if kind == "topk" else {},
        "apply_b_dec_to_input": kind != "no-b-dec",
        "normalize_activations": "layer_norm" if kind == "layer-norm" else kind == "scaled",
        "finetuning_scaling_factor": kind == "finetuned",
    }
    to_json(folder / "cfg.json", config)
    arrays = {"W_enc": w.W_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "b_enc": w.b_enc}
    if kind == "jumprelu":
        arrays["log_threshold"] = np.log(w.threshold)
    if kind == "finetuned":
        arrays["finetuning_scaling_factor"] = factor
    save_file(tensors(arrays), folder / "sae_weights.safetensors")
    s = 0.3 if kind == "scaled" else 1.0

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_n, mean, std = layer_norm(x) if kind == "layer-norm" else (x * s, 0, 1 / s)
        pre = (x_n if kind == "no-b-dec" else x_n - w.b_dec) @ w.W_enc + w.b_enc
        latents = relu(pre)
        if kind == "jumprelu":
            latents = latents * (pre > w.threshold)
        if kind == "topk":
            latents = topk(latents, 6)
        rebuilt = (latents * factor if kind == "finetuned" else latents) @ w.W_dec + w.b_dec
        return latents, rebuilt * std + mean

    options = {"input_scale": s} if kind == "scaled" else {}
    norm = "layer_norm" if kind == "layer-norm" else "none"
    return Foreign(folder, define, "saelens", options, hook_point="layers.8:input", token_norm=norm)


def saelens_whitened(root: Path, subtracts: bool, kind: str = "standard") -> Foreign:
    """A training checkpoint whose inputs are whitened: z = (x - mean) M, x_hat = z_hat M^-1 + mean."""
    w = Weights(12)
    folder = root / "checkpoint"
    mean, M = numbers(D, seed=51), numbers(D, D, seed=52, scale=0.3) + np.eye(D)
    inverse = np.linalg.inv(M).astype(np.float32).astype(np.float64)
    r_mag, b_mag = numbers(F, seed=53, scale=0.2), numbers(F, seed=54, scale=0.2)
    config = {
        "architecture": kind,
        "d_in": D,
        "d_sae": F,
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": "covariance_whitening",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.2.hook_mlp_out"},
    }
    to_json(folder / "cfg.json", config)
    to_json(folder / "activation_scaler.json", {"scaling_factor": None, "has_whitening": True})
    save_file(
        tensors({"mean": mean, "matrix": M, "inverse_matrix": inverse}), folder / "activation_whitening.safetensors"
    )
    arrays = {"W_enc": w.W_enc, "W_dec": w.W_dec, "b_dec": w.b_dec}
    arrays |= {"b_gate": w.b_enc, "b_mag": b_mag, "r_mag": r_mag} if kind == "gated" else {"b_enc": w.b_enc}
    save_file(tensors(arrays), folder / "sae_weights.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = (x - mean) @ M
        product = (z - w.b_dec if subtracts else z) @ w.W_enc
        latents = relu(product + w.b_enc)
        if kind == "gated":
            latents = (product + w.b_enc > 0) * relu(product * np.exp(r_mag) + b_mag)
        return latents, (latents @ w.W_dec + w.b_dec) @ inverse + mean

    return Foreign(folder, define, "saelens", hook_point="layers.2.mlp")


def saelens_scaled(root: Path) -> Foreign:
    """A training checkpoint whose activation_scaler.json says what activations are multiplied by."""
    w = Weights(13)
    folder = root / "checkpoint"
    s = 0.4
    config = {
        "architecture": "topk",
        "d_in": D,
        "d_sae": F,
        "k": 6,
        "rescale_acts_by_decoder_norm": True,
        "apply_b_dec_to_input": True,
        "normalize_activations": "expected_average_only_in",
        "metadata": {"sae_lens_version": "6.20.0"},
    }
    to_json(folder / "cfg.json", config)
    to_json(folder / "activation_scaler.json", {"scaling_factor": s})
    arrays = {"W_enc": w.W_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "b_enc": w.b_enc}
    save_file(tensors(arrays), folder / "sae_weights.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        norms = np.linalg.norm(w.W_dec, axis=1)
        latents = relu(topk(((x * s - w.b_dec) @ w.W_enc + w.b_enc) * norms, 6))
        return latents, ((latents / norms) @ w.W_dec + w.b_dec) / s

    return Foreign(folder, define, "saelens")


def sparsify_old(root: Path) -> Foreign:
    """From before `activation` was a field, and with num_latents=0 for d_in * expansion_factor."""
    w = Weights(14)
    folder = root / "layers.6.mlp"
    n = 3 * D
    config = {
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 5,
        "multi_topk": False,
        "d_in": D,
    }
    to_json(folder / "cfg.json", config)
    arrays = {"encoder.weight": w.W_enc.T[:n], "encoder.bias": w.b_enc[:n], "W_dec": w.W_dec[:n], "b_dec": w.b_dec}
    save_file(tensors(arrays), folder / "sae.safetensors")

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents = topk(relu((x - w.b_dec) @ w.W_enc[:, :n] + w.b_enc[:n]), 5)
        return latents, latents @ w.W_dec[:n] + w.b_dec

    return Foreign(folder, define, "sparsify", hook_point="layers.6.mlp")


def dictionary_learning_interrupted(root: Path) -> Foreign:
    """`checkpoints/ae_1000.pt` of a run that was stopped: activations are divided by norm_factor."""
    w = Weights(15)
    factor, threshold = 2.5, 0.3
    path = root / "trainer_0" / "checkpoints" / "ae_1000.pt"
    to_json(root / "trainer_0" / "config.json", {"trainer": {"dict_class": "BatchTopKSAE", "k": 6, "dict_size": F}})
    path.parent.mkdir()
    arrays = {"encoder.weight": w.W_enc.T, "encoder.bias": w.b_enc, "decoder.weight": w.W_dec.T, "b_dec": w.b_dec}
    state: dict[str, Any] = {**tensors(arrays), "k": torch.tensor(6), "threshold": torch.tensor(threshold)}
    torch.save({"step": 1000, "ae": state, "optimizer": {}, "config": {}, "norm_factor": factor}, path)

    def define(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = (x / factor - w.b_dec) @ w.W_enc + w.b_enc
        latents = relu(pre) * (relu(pre) > np.float32(threshold))
        # A finished run multiplies biases and threshold by the factor, so its latents are in units of raw activations.
        return latents * factor, (latents @ w.W_dec + w.b_dec) * factor

    return Foreign(path, define, "dictionary_learning")


LAYOUTS: dict[str, Callable[[Path], Foreign]] = {
    "gemma scope 1": gemma_scope_1,
    "gemma scope 1, w_enc": lambda root: gemma_scope_1(root, small_w=True),
    "gemma scope 1, embedding": gemma_scope_1_embedding,
    "gemma scope 2": gemma_scope_2,
    "gemma scope 2, transcoder": lambda root: gemma_scope_2(root, transcoder=True),
    "llama scope": llama_scope,
    "llama scope, r1": llama_scope_r1,
    "llamascopium, relu": lambda root: llamascopium(root, "relu"),
    "llamascopium, jumprelu": lambda root: llamascopium(root, "jumprelu"),
    "llamascopium, topk": lambda root: llamascopium(root, "topk"),
    "llamascopium, inference": lambda root: llamascopium(root, "jumprelu", "inference"),
    "llamascopium, token-wise": lambda root: llamascopium(root, "relu", "token-wise"),
    "llamascopium, transcoder": lambda root: llamascopium(root, "jumprelu", transcoder=True),
    "openai, topk": openai,
    "openai, relu": lambda root: openai(root, "ReLU"),
    "qwen scope": qwen_scope,
    "saev, no schema": lambda root: saev(root, "none"),
    "saev, schema 1 first form, topk": lambda root: saev(root, "1a", "TopK"),
    "saev, schema 1 second form": lambda root: saev(root, "1b", "Relu"),
    "saev, schema 2, topk": lambda root: saev(root, "2", "TopK"),
    "saev, schema 3, batchtopk": lambda root: saev(root, "3", "BatchTopK"),
    "saev, schema 4": lambda root: saev(root, "4"),
    "saev, schema 5, batchtopk": lambda root: saev(root, "5", "BatchTopK"),
    "saev, with moments": saev_with_moments,
    "overcomplete, relu": lambda root: overcomplete(root, "relu"),
    "overcomplete, bare sequence": lambda root: overcomplete(root, "relu", "encoder."),
    "overcomplete, topk": lambda root: overcomplete(root, "topk"),
    "overcomplete, batchtopk": lambda root: overcomplete(root, "batchtopk"),
    "overcomplete, jump": lambda root: overcomplete(root, "jump"),
    "prisma, relu": lambda root: prisma(root, "relu"),
    "prisma, no norm": lambda root: prisma(root, "relu", "none"),
    "prisma, topk": lambda root: prisma(root, "topk"),
    "prisma, gated": lambda root: prisma(root, "gated"),
    "prisma, transcoder": lambda root: prisma(root, "transcoder", "none"),
    "saelens legacy": lambda root: saelens_legacy(root, "standard"),
    "saelens legacy, jumprelu": lambda root: saelens_legacy(root, "jumprelu"),
    "saelens legacy, topk": lambda root: saelens_legacy(root, "topk"),
    "saelens legacy, layer norm": lambda root: saelens_legacy(root, "layer-norm"),
    "saelens legacy, no b_dec": lambda root: saelens_legacy(root, "no-b-dec"),
    "saelens legacy, finetuned": lambda root: saelens_legacy(root, "finetuned"),
    "saelens legacy, scaled": lambda root: saelens_legacy(root, "scaled"),
    "saelens, whitened": lambda root: saelens_whitened(root, subtracts=True),
    "saelens, whitened, no b_dec": lambda root: saelens_whitened(root, subtracts=False),
    "saelens, whitened, gated": lambda root: saelens_whitened(root, subtracts=False, kind="gated"),
    "saelens, scaled": saelens_scaled,
    "sparsify, old": sparsify_old,
    "dictionary_learning, interrupted": dictionary_learning_interrupted,
}
