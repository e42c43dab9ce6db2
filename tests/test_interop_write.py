"""What we write in other projects' formats reads back as the same autoencoder, or is refused with the reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import saekit as sk
from saekit.autoencoders import Transcoder, TranscoderConfig
from saekit.interop import WRITABLE, load_sae, save_as

D, F = 10, 36
SPECS = {
    "relu": sk.Relu(),
    "topk": sk.TopK(k=4),
    "jumprelu": sk.JumpRelu(),
    "gated": sk.Gated(),
    "batchtopk": sk.BatchTopK(k=4),
    "matryoshka": sk.MatryoshkaBatchTopK(k=4, prefix_shares=(0.25, 0.5)),
}
WRITES = {
    "saelens": set(SPECS),
    "saelens-legacy": set(SPECS),
    "sparsify": {"topk"},
    "dictionary_learning": set(SPECS),
    "dictionary_learning-new": set(SPECS),
}
PROVENANCE = {"hook_point": "layers.6", "backbone": {"spec": "smollm2"}, "options": {"context_size": 128}, "seed": 3}


def shaken(model: Transcoder | sk.SparseAutoencoder) -> Transcoder | sk.SparseAutoencoder:
    """Every tensor away from where it starts, with an input mean and scale to fold."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("n_batches"):
                tensor.fill_(9)
            elif name.endswith("threshold"):
                tensor.copy_(0.2 + 0.5 * torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and name not in ("input_mean", "input_scale", "sparsity_scale"):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    if isinstance(model, sk.SparseAutoencoder) and model.config.token_norm == "none":
        model.set_input_moments_(torch.randn(D, generator=generator), 40.0)
    model.provenance = PROVENANCE
    return model


def autoencoder(kind: str, **settings: object) -> sk.SparseAutoencoder:
    config = sk.SparseAutoencoderConfig(d_in=D, d_sae=F, sparsity=SPECS[kind], decoder_norm="free", **settings)
    return shaken(sk.SparseAutoencoder(config))


def transcoder(kind: str, has_skip: bool, d_out: int = D) -> Transcoder:
    config = TranscoderConfig(d_in=D, d_out=d_out, d_sae=F, sparsity=SPECS[kind], has_skip=has_skip)
    return shaken(Transcoder(config))


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.randn(50, D, generator=generator) + torch.randn(D, generator=generator)


@torch.no_grad()
def assert_same(a: torch.nn.Module, b: torch.nn.Module, x: torch.Tensor) -> None:
    assert bool((a.encode(x) > 0).any())
    assert torch.allclose(a.encode(x), b.encode(x), rtol=1e-5, atol=1e-5)
    assert torch.allclose(a(x), b(x), rtol=1e-5, atol=2e-5)


def test_every_writable_format_is_tested():
    assert set(WRITES) == set(WRITABLE)


@pytest.mark.parametrize(("format", "kind"), [(name, kind) for name, kinds in WRITES.items() for kind in sorted(kinds)])
def test_what_is_written_reads_back_the_same(format, kind, x, tmp_path):
    sae = autoencoder(kind)
    notes = save_as(sae, tmp_path / "written", format=format)
    again = load_sae(tmp_path / "written")
    assert_same(sae, again, x)
    assert any("input mean" in note and "input scale" in note for note in notes)
    # What has no layout of its own is written as a JumpReLU with that threshold.
    stays = format.startswith("dictionary") or kind not in ("batchtopk", "matryoshka")
    assert type(again.config.sparsity) is (type(SPECS[kind]) if stays else sk.JumpRelu)


@pytest.mark.parametrize("kind", ["topk", "matryoshka"])
def test_sizes_survive_dictionary_learning(kind, tmp_path):
    save_as(autoencoder(kind), tmp_path / "written", format="dictionary_learning")
    spec = load_sae(tmp_path / "written").config.sparsity
    assert spec.k == 4
    assert getattr(spec, "prefix_shares", None) == getattr(SPECS[kind], "prefix_shares", None)


@pytest.mark.parametrize("norm", ["layer_norm", "rms"])
@pytest.mark.parametrize("format", ["saelens", "saelens-legacy"])
def test_a_norm_of_each_token_is_carried(norm, format, x, tmp_path):
    sae = autoencoder("relu", token_norm=norm)
    sae.input_scale.fill_(0.5)
    save_as(sae, tmp_path / "written", format=format)
    again = load_sae(tmp_path / "written")
    assert again.config.token_norm == norm
    assert_same(sae, again, x)


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize(
    ("format", "kind", "d_out"),
    [("saelens", "relu", 7), ("saelens", "jumprelu", D), ("sparsify", "topk", D)],
)
def test_transcoders_read_back_the_same(format, kind, d_out, has_skip, x, tmp_path):
    model = transcoder(kind, has_skip, d_out)
    save_as(model, tmp_path / "written", format=format)
    again = load_sae(tmp_path / "written")
    assert isinstance(again, Transcoder)
    assert again.config.has_skip is has_skip
    assert_same(model, again, x)


def test_the_hook_point_and_the_model_are_said(tmp_path):
    sae = autoencoder("relu")
    save_as(sae, tmp_path / "written", format="saelens")
    metadata = json.loads((tmp_path / "written" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.6.hook_resid_post"
    assert metadata["model_name"] == "smollm2"
    assert metadata["context_size"] == 128
    assert load_sae(tmp_path / "written").provenance["hook_point"] == "layers.6"


def test_a_hook_point_that_only_we_name_is_kept(tmp_path):
    sae = autoencoder("relu")
    sae.provenance = {"hook_point": "model.layers.3.mlp.act_fn:input"}
    save_as(sae, tmp_path / "written", format="saelens")
    assert load_sae(tmp_path / "written").provenance["hook_point"] == "model.layers.3.mlp.act_fn:input"


def test_metadata_of_another_project_survives_us(tmp_path):
    save_as(autoencoder("relu"), tmp_path / "first", format="saelens")
    config = json.loads((tmp_path / "first" / "cfg.json").read_text())
    config["metadata"] |= {"neuronpedia_id": "gpt2-small/6-res-jb", "dataset_path": "Skylion007/openwebtext"}
    (tmp_path / "first" / "cfg.json").write_text(json.dumps(config))
    save_as(load_sae(tmp_path / "first"), tmp_path / "second", format="saelens")
    metadata = json.loads((tmp_path / "second" / "cfg.json").read_text())["metadata"]
    assert metadata["neuronpedia_id"] == "gpt2-small/6-res-jb"
    assert metadata["dataset_path"] == "Skylion007/openwebtext"


def test_latents_are_not_rescaled_by_folding(tmp_path):
    sae = autoencoder("relu")
    save_as(sae, tmp_path / "written", format="saelens")
    weights = load_file(tmp_path / "written" / "sae_weights.safetensors")
    assert torch.allclose(weights["W_enc"], sae.W_enc.detach() * sae.input_scale, rtol=1e-6)
    assert torch.allclose(weights["W_dec"], sae.W_dec.detach() / sae.input_scale, rtol=1e-6)
    assert torch.allclose(weights["b_dec"], sae.b_dec.detach() / sae.input_scale + sae.input_mean, rtol=1e-6)
    assert torch.equal(weights["b_enc"], sae.b_enc.detach())


@pytest.mark.parametrize(
    ("make", "format", "reason"),
    [
        (lambda: autoencoder("relu"), "sparsify", "its latents are TopK, not relu"),
        (lambda: autoencoder("relu", token_norm="rms"), "dictionary_learning", "normalise each token by itself"),
        (lambda: transcoder("relu", False), "dictionary_learning", "it has no transcoders"),
        (lambda: transcoder("relu", False), "saelens-legacy", "no transcoders before version 6"),
        (lambda: transcoder("topk", False), "saelens", "transcoders with ReLU and JumpReLU latents, not topk"),
        (lambda: transcoder("topk", False, 7), "sparsify", "one width, not 10 and 7"),
        (lambda: autoencoder("relu"), "gemma_scope", "can be read and not written. Writes: saekit, saelens"),
        (lambda: autoencoder("relu"), "saelense", "is no format that saekit knows"),
        (
            lambda: sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=D, d_sae=F, sparsity=sk.KLDivergence())),
            "saelens",
            "Only saekit knows KLDivergence",
        ),
        (
            lambda: sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=D, d_sae=F, sparsity=sk.BatchTopK(k=4))),
            "saelens",
            "never trained, so it has no threshold",
        ),
    ],
)
def test_what_a_format_cannot_express_is_refused_and_nothing_written(make, format, reason, tmp_path):
    with pytest.raises(sk.ConfigError, match=reason):
        save_as(make(), tmp_path / "written", format=format)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(sk.ConfigError, match="exists and is not an empty folder"):
        save_as(autoencoder("relu"), tmp_path / "mine", format="saelens")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saekit.interop.saelens.save_file", fails)
    with pytest.raises(OSError, match="No space left"):
        save_as(autoencoder("relu"), tmp_path / "deep" / "written", format="saelens")
    assert list(Path(tmp_path / "deep").iterdir()) == []


def test_our_own_format_is_the_checkpoint(x, tmp_path):
    sae = autoencoder("topk")
    assert save_as(sae, tmp_path / "ours", format="saekit") == ()
    again = load_sae(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.provenance == PROVENANCE
