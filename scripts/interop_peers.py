"""The peers' side of scripts/interop_roundtrip.py, run by the python of their environment, where saekit is not.

    interop_peers.py read FOLDER     open with each library what saekit wrote, and encode and decode
    interop_peers.py write FOLDER    save with each library dictionaries of its own, and encode and decode

FOLDER has x.npy and, to be read, cases.json; it gets a <case>.npz of `latents` and `x_hat` for each case.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its kernels need a GPU

import dictionary_learning.dictionary as dl
import numpy as np
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sparsify import SparseCoder, SparseCoderConfig

D_SAE_FACTOR = 4


def main(what: str, folder: Path) -> None:
    x = torch.from_numpy(np.load(folder / "x.npy"))
    cases = read_cases(folder, x) if what == "read" else write_cases(folder, x)
    done = []
    for name, latents, x_hat in cases:
        np.savez(folder / f"{name}.npz", latents=latents.detach().numpy(), x_hat=x_hat.detach().numpy())
        done.append(name)
    (folder / "done.json").write_text(json.dumps(done))


def read_cases(folder: Path, x: torch.Tensor):
    for case in json.loads((folder / "cases.json").read_text()):
        path = folder / case["path"]
        run = {"saelens": run_saelens, "sparsify": run_sparsify, "dictionary_learning": run_dictionary}[case["library"]]
        yield case["name"], *run(path, x)


def run_saelens(path: Path, x: torch.Tensor):
    sae = SAE.load_from_disk(path)
    return sae.encode(x), sae(x)


def run_sparsify(path: Path, x: torch.Tensor):
    return sparse_coder_outputs(SparseCoder.load_from_disk(path), x)


def run_dictionary(path: Path, x: torch.Tensor):
    if json.loads((path / "config.json").read_text())["trainer"]["dict_class"] == "AutoEncoder":
        # load_dictionary rescales this class to unit decoder rows, which changes latents and not reconstructions.
        dictionary = dl.AutoEncoder.from_pretrained(path / "ae.pt", normalize_decoder=False)
        rescaled, _ = load_dictionary(str(path), "cpu")
        assert torch.allclose(rescaled(x), dictionary(x), rtol=1e-3, atol=1e-3)
    else:
        dictionary, _ = load_dictionary(str(path), "cpu")
    latents = dictionary.encode(x)
    return latents, dictionary.decode(latents)


def sparse_coder_outputs(coder: SparseCoder, x: torch.Tensor):
    values, indices, _ = coder.encode(x)
    latents = torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)
    x_hat = coder.decode(values, indices)
    return latents, x_hat if coder.W_skip is None else x_hat + x @ coder.W_skip.mT


def write_cases(folder: Path, x: torch.Tensor):
    torch.manual_seed(0)
    for maker in (saelens_cases, sparsify_cases, dictionary_cases):
        yield from maker(folder, x)


def scramble_(module: torch.nn.Module, x: torch.Tensor) -> None:
    """Give every parameter values that matter: biases near the data's mean, encoders of the data's scale."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            last = name.split(".")[-1]
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) / (2 * parameter.shape[-1] ** 0.5))
            elif parameter.shape == x.shape[1:] and "enc" not in name:
                parameter.copy_(x.mean(0) + 0.1 * torch.randn_like(parameter))
            elif last == "threshold":
                parameter.copy_(0.5 + torch.rand_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))


def saelens_cases(folder: Path, x: torch.Tensor):
    d, n = x.shape[1], D_SAE_FACTOR * x.shape[1]
    sizes = {"d_in": d, "d_sae": n}
    variants = {
        "standard": ("standard", {}),
        "standard-no-b-dec": ("standard", {"apply_b_dec_to_input": False}),
        "standard-layer-norm": ("standard", {"normalize_activations": "layer_norm"}),
        "standard-constant-norm": ("standard", {"normalize_activations": "constant_norm_rescale"}),
        "topk": ("topk", {"k": 8}),
        "topk-rescaled": ("topk", {"k": 8, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("jumprelu", {}),
        "jumprelu-no-b-dec": ("jumprelu", {"apply_b_dec_to_input": False}),
        "gated": ("gated", {}),
        "gated-no-b-dec": ("gated", {"apply_b_dec_to_input": False}),
        "transcoder": ("transcoder", {"d_out": d, "apply_b_dec_to_input": False}),
        "skip_transcoder": ("skip_transcoder", {"d_out": d, "apply_b_dec_to_input": False}),
        "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": d, "apply_b_dec_to_input": False}),
        "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": d, "apply_b_dec_to_input": False}),
    }
    for name, (architecture, options) in variants.items():
        sae_class, config_class = get_sae_class(architecture)
        sae = sae_class(config_class(**sizes, **options))
        scramble_(sae, x)
        sae.save_model(folder / f"saelens-{name}")
        yield f"saelens-{name}", sae.encode(x), sae(x)
    for architecture, options in {
        "batchtopk": {},
        "matryoshka_batchtopk": {"matryoshka_widths": [n // 4, n // 2]},
    }.items():
        sae_class, config_class = get_sae_training_class(architecture)
        sae = sae_class(config_class(**sizes, k=8, **options))
        scramble_(sae, x)
        sae.topk_threshold = torch.tensor(1.0, dtype=torch.float64)
        sae.save_model(folder / f"saelens-{architecture}-training")
        sae.save_inference_model(folder / f"saelens-{architecture}-inference")
        # What SAELens has for use: the model that it writes for inference, read by SAELens.
        reference = SAE.load_from_disk(folder / f"saelens-{architecture}-inference")
        for kind in ("training", "inference"):
            yield f"saelens-{architecture}-{kind}", reference.encode(x), reference(x)


def sparsify_cases(folder: Path, x: torch.Tensor):
    variants = {"topk": {}, "transcoder": {"transcode": True}, "skip": {"transcode": True, "skip_connection": True}}
    for name, options in variants.items():
        coder = SparseCoder(x.shape[1], SparseCoderConfig(expansion_factor=D_SAE_FACTOR, k=8, **options))
        scramble_(coder, x)
        coder.save_to_disk(folder / f"sparsify-{name}")
        yield f"sparsify-{name}", *sparse_coder_outputs(coder, x)


def dictionary_cases(folder: Path, x: torch.Tensor):
    d, n = x.shape[1], D_SAE_FACTOR * x.shape[1]
    made = [
        dl.AutoEncoder(d, n),
        dl.AutoEncoderNew(d, n),
        dl.GatedAutoEncoder(d, n),
        dl.JumpReluAutoEncoder(d, n),
        AutoEncoderTopK(d, n, 8),
        BatchTopKSAE(d, n, 8),
        MatryoshkaBatchTopKSAE(d, n, 8, [n // 4, n // 4, n // 2]),
    ]
    for dictionary in made:
        scramble_(dictionary, x)
        name = type(dictionary).__name__
        trainer = {"dict_class": name, "activation_dim": d, "dict_size": n}
        if hasattr(dictionary, "k"):
            trainer["k"] = int(dictionary.k)
            dictionary.threshold.fill_(0.7)
        path = folder / f"dictionary_learning-{name}"
        path.mkdir()
        torch.save(dictionary.state_dict(), path / "ae.pt")
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        latents = dictionary.encode(x)
        yield path.name, latents, dictionary.decode(latents)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
