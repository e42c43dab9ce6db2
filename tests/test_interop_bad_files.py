"""Foreign files that are damaged, contradict themselves or would run code: one clear error, and nothing written."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import LAYOUTS, D, F, Weights, tensors
from safetensors.torch import load_file, save_file

import saekit as sk
from saekit.errors import CheckpointError, ConfigError
from saekit.interop import load_sae


@pytest.fixture
def saelens(tmp_path: Path) -> Path:
    """A whole folder of SAELens 6."""
    w = Weights()
    folder = tmp_path / "sae"
    folder.mkdir()
    arrays = {"W_enc": w.W_enc, "b_enc": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec, "threshold": w.threshold}
    save_file(tensors(arrays), folder / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": F, "metadata": {"sae_lens_version": "6.54.12"}}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert isinstance(load_sae(folder), sk.SparseAutoencoder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


def change_tensors(folder: Path, drop: tuple[str, ...] = (), **changes: torch.Tensor) -> None:
    found = load_file(folder / "sae_weights.safetensors")
    kept = {name: tensor for name, tensor in found.items() if name not in drop}
    save_file({**kept, **changes}, folder / "sae_weights.safetensors")


def test_all_missing_extra_and_misshaped_tensors_are_listed_at_once(saelens):
    change_tensors(
        saelens, drop=("b_enc", "threshold"), W_skip=torch.zeros(D, D), b_dec=torch.zeros(D + 1), extra=torch.zeros(3)
    )
    with pytest.raises(CheckpointError) as caught:
        load_sae(saelens)
    for problem in (
        "missing b_enc [F]",
        "missing threshold [F]",
        f"unexpected W_skip [{D}, {D}]",
        "unexpected extra [3]",
        f"b_dec has shape [{D + 1}], expected [{D}]",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_in": 99, "d_sae": 7},
            f"cfg.json says d=99 and the weights d={D}; cfg.json says F=7 and the weights F={F}",
        ),
        ({"architecture": "gated"}, "missing b_gate"),
        ({"architecture": "standard"}, "unexpected threshold"),
        ({"architecture": "abstopk"}, "latents may be negative"),
        ({"architecture": "temporal"}, "depend on other tokens"),
        ({"architecture": "jumpreluu"}, "says architecture='jumpreluu'; saekit can read 'standard', 'topk'"),
        ({"normalize_activations": "expected_average_only_in"}, "Give input_scale"),
        ({"normalize_activations": "median"}, "says normalize_activations='median'"),
        ({"normalize_activations": "covariance_whitening"}, "activation_whitening.safetensors does not exist"),
    ],
)
def test_a_config_that_contradicts_its_weights_is_an_error(saelens, changes, message):
    change_config(saelens, **changes)
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(")):
        load_sae(saelens)


def test_a_norm_of_the_average_that_no_file_states_can_be_given(saelens):
    change_config(saelens, normalize_activations="expected_average_only_in")
    folded, plain = load_sae(saelens, input_scale=0.5), torch.randn(4, D)
    change_config(saelens, normalize_activations="none")
    assert torch.allclose(folded.encode(2 * plain), load_sae(saelens).encode(plain), atol=1e-5)
    assert float(folded.input_scale) == 1
    again = load_sae(saelens, input_scale=0.5)  # the file needs none: it is of a normalisation before the autoencoder
    assert float(again.input_scale) == 0.5
    assert torch.allclose(again.encode(2 * plain), load_sae(saelens).encode(plain), atol=1e-5)
    with pytest.raises(ConfigError, match="input_scale=0.0 is not a finite number above 0"):
        load_sae(saelens, input_scale=0.0)


def test_values_that_are_not_finite_are_named(saelens):
    change_tensors(saelens, b_enc=torch.full((F,), float("nan")))
    with pytest.raises(CheckpointError, match="b_enc holds values that are not finite"):
        load_sae(saelens)


def test_truncated_and_garbled_files_are_named(saelens):
    weights = saelens / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_sae(saelens)
    (saelens / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_sae(saelens)


@pytest.mark.parametrize("name", ["openai, topk", "saev, schema 4", "gemma scope 1", "qwen scope"])
def test_half_a_download_is_named(name, tmp_path):
    foreign = LAYOUTS[name](tmp_path)
    path = next(iter(foreign.path.glob("*.npz"))) if foreign.path.is_dir() else foreign.path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="Fetch it again"):
        load_sae(foreign.path, format=foreign.format)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_would_run_code_is_refused_with_advice(plain, tmp_path):
    trap = Trap(tmp_path / "sprung")
    if plain:
        (tmp_path / "sae.pt").write_bytes(pickle.dumps({"W_enc": trap}))
    else:
        torch.save({"W_enc": torch.zeros(2, 2), "cfg": trap}, tmp_path / "sae.pt")
    with pytest.raises(CheckpointError, match=r"would run code .* refused.*weights_only=False.*state_dict"):
        load_sae(tmp_path / "sae.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_module_saved_with_pickle_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds an object of torch.nn.modules.linear.Linear"):
        load_sae(tmp_path / "model.pt")


def test_npz_files_may_not_hold_objects(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="not a whole npz file of plain arrays"):
        load_sae(tmp_path)


def test_what_is_no_autoencoder_says_what_is_there(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(
        CheckpointError, match=r"in a format that saekit knows. It holds: readme.txt. Formats: saekit, "
    ):
        load_sae(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist, and an id on the hub is owner/name"):
        load_sae(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_sae(tmp_path, subfolder="nowhere")


def test_a_format_that_cannot_be_read_names_the_closest(tmp_path):
    with pytest.raises(ConfigError, match="'saelense' is no format that saekit reads. Closest: 'saelens'"):
        load_sae(tmp_path, format="saelense")
    with pytest.raises(CheckpointError, match="it has no meta.json"):
        load_sae(tmp_path, format="saekit")


def test_two_formats_in_one_folder_ask_which(saelens, tmp_path):
    foreign = LAYOUTS["sparsify, old"](tmp_path)
    shutil.copy(foreign.path / "sae.safetensors", saelens)
    with pytest.raises(CheckpointError, match="could be saelens or sparsify. Name the format"):
        load_sae(saelens)
    assert load_sae(saelens, format="saelens").config.d_sae == F


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("openai, topk", {"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, "latents may be negative"),
        ("openai, topk", {"activation_state_dict": {}}, "does not say k. Give k"),
        ("openai, topk", {"activation": "Softplus"}, "says activation='Softplus'"),
    ],
)
def test_openai_activations_that_we_lack_are_refused(layout, change, message, tmp_path):
    foreign = LAYOUTS[layout](tmp_path)
    torch.save({**torch.load(foreign.path, weights_only=True), **change}, foreign.path)
    with pytest.raises(CheckpointError, match=message):
        load_sae(foreign.path)


@pytest.mark.parametrize(
    ("layout", "file", "change", "message"),
    [
        ("sparsify, old", "cfg.json", {"activation": "groupmax"}, "a groupmax of sparsify, which saekit cannot hold"),
        ("sparsify, old", "cfg.json", {"num_latents": 77}, "cfg.json says F=77"),
        ("llamascopium, relu", "config.json", {"use_glu_encoder": True}, "gated linear unit"),
        ("llamascopium, relu", "config.json", {"sae_type": "crosscoder"}, "says sae_type='crosscoder'"),
        ("llamascopium, relu", "config.json", {"norm_activation": "batch-wise"}, "says norm_activation='batch-wise'"),
        ("llama scope", "hyperparams.json", {"dataset_average_activation_norm": {}}, "does not say their norm"),
        ("gemma scope 2", "config.json", {"architecture": "topk"}, "says architecture='topk'"),
        ("prisma, relu", "config.json", {"activation_fn_str": "tanh-relu"}, "says activation_fn_str='tanh-relu'"),
        ("saelens legacy", "cfg.json", {"activation_fn_str": "tanh-relu"}, "says activation_fn='tanh-relu'"),
    ],
)
def test_what_we_cannot_hold_is_refused_with_the_reason(layout, file, change, message, tmp_path):
    foreign = LAYOUTS[layout](tmp_path)
    config = json.loads((foreign.path / file).read_text())
    (foreign.path / file).write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_sae(foreign.path, **foreign.options)


def test_a_batchtopk_without_its_threshold_is_refused(tmp_path):
    foreign = LAYOUTS["dictionary_learning, interrupted"](tmp_path)
    saved = torch.load(foreign.path, weights_only=True)
    saved["ae"]["threshold"] = torch.tensor(-1.0)
    torch.save(saved, foreign.path)
    with pytest.raises(CheckpointError, match="has no threshold yet"):
        load_sae(foreign.path)
    assert float(load_sae(foreign.path, threshold=0.2).sparsifier.threshold) == pytest.approx(0.2 * 2.5)


def test_classes_with_the_same_tensors_ask_for_a_config(tmp_path):
    foreign = LAYOUTS["dictionary_learning, interrupted"](tmp_path)
    (foreign.path.parent.parent / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is AutoEncoderTopK or BatchTopKSAE by its tensors' names"):
        load_sae(foreign.path)


def test_our_own_checkpoint_takes_no_options(tmp_path):
    sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=D, d_sae=F))
    sae.save(tmp_path / "ours")
    with pytest.raises(ConfigError, match="it holds k, threshold and normalisation itself"):
        load_sae(tmp_path / "ours", k=3)


def test_moments_that_do_not_fit_are_refused(tmp_path):
    foreign = LAYOUTS["saev, schema 4"](tmp_path)
    with pytest.raises(ConfigError, match=r"input_mean has shape \[3\], expected \[12\]"):
        load_sae(foreign.path, input_mean=torch.zeros(3))
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="token_norm='layer_norm'"):
        load_sae(LAYOUTS["openai, topk"](tmp_path / "other").path, input_scale=2.0)


def test_several_torch_files_are_named(tmp_path):
    foreign = LAYOUTS["qwen scope"](tmp_path)
    shutil.copy(foreign.path, foreign.path.with_name("layer15.sae.pt"))
    with pytest.raises(CheckpointError, match="holds 2 torch files. Name one: layer14.sae.pt, layer15.sae.pt"):
        load_sae(foreign.path.parent)
    assert load_sae(foreign.path.parent, subfolder="layer15.sae.pt").provenance["hook_point"] == "layers.15"


@pytest.mark.parametrize("content", [b"junk" * 100, b"K\x01R.", b"G\x00."])
def test_a_pt_file_of_other_bytes_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        load_sae(tmp_path / "weights.pt")
