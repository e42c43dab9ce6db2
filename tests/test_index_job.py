"""`saekit index` and `build_index`: from a store and a checkpoint to an index, or a clear refusal."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch
from fake_backbones import FakeImages
from indexes import dense
from stores import make_tiny_store

from saekit.autoencoders import Autoencoder, KLDivergence, Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.backbones import load_backbone
from saekit.backbones.language import CausalLM
from saekit.cli import main
from saekit.errors import BackboneError, CheckpointError, ConfigError, StoreError
from saekit.index import FeatureIndex
from saekit.index.dictionary import dictionary_arrays, logit_lens, nearest_rows
from saekit.inputs import Document
from saekit.jobs.extract import extract
from saekit.jobs.index import IndexConfig, build_index, find_checkpoint, run
from saekit.store import ActivationStore

D_IN, D_SAE = 16, 48


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_tiny_store(tmp_path_factory.mktemp("store") / "acts", d=D_IN, hook_points=("layers.0", "layers.1"))


def make_sae(
    store: ActivationStore | None, d_in: int = D_IN, sparsity: Any = None, **changes: Any
) -> SparseAutoencoder:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=d_in, d_sae=D_SAE, sparsity=sparsity or TopK(k=4)))
    if store is not None:
        sae.provenance = {**store.provenance("layers.1"), **changes}
    return sae


class FakeModel(CausalLM):
    """A language model that is only asked for its unembedding."""

    def __init__(self, d_model: int = D_IN) -> None:
        self.spec, self.d_model = "fake", d_model

    def unembedding(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        matrix = torch.randn(self.d_model, 100, generator=torch.Generator().manual_seed(0))
        return matrix, torch.linspace(0.5, 2, self.d_model)


@dataclass(frozen=True)
class DenseConfig:
    d_in: int = D_IN


class Dense(Autoencoder):
    Config: ClassVar[type] = DenseConfig

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    decode = encode

    def training_loss(self, x: torch.Tensor) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("sparsity", [TopK(k=4), Relu(), KLDivergence()], ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("batch_size", [7, 4096])
def test_an_index_holds_exactly_what_encode_sparse_gives(
    sparsity: Any, batch_size: int, store: ActivationStore, tmp_path: Path
) -> None:
    sae = make_sae(store, sparsity=sparsity)
    torch.nn.init.normal_(sae.b_enc, std=0.5)
    index = build_index(sae, store, tmp_path / "index", batch_size=batch_size, progress=False)
    expected = sae.encode_sparse(store.rows(0, store.n_rows, "layers.1")).to_dense(D_SAE).numpy()
    found = dense(index)
    assert ((found != 0) == (expected != 0)).all()
    active = expected != 0
    assert active.any()
    assert np.abs(found[active] / expected[active] - 1).max() < 1e-3


def test_an_index_says_what_it_was_made_from(store: ActivationStore, tmp_path: Path) -> None:
    make_sae(store).save(tmp_path / "checkpoint", store.provenance("layers.1"))
    sae = SparseAutoencoder.load(tmp_path / "checkpoint")
    meta = build_index(sae, store, tmp_path / "i", checkpoint=tmp_path / "checkpoint", progress=False).meta
    assert meta["hook_point"] == "layers.1"
    assert meta["backbone"]["spec"] == "tiny-text"
    assert meta["store"] == {
        "path": str(store.path.absolute()),
        "content_hash": store.content_hash,
        "is_training_store": True,
        "n_high_norm_rows": 0,
    }
    assert meta["checkpoint"]["path"] == str(tmp_path / "checkpoint")
    assert meta["checkpoint"]["config"]["sparsity"]["kind"] == "TopK"


def test_a_store_of_images_gives_an_index_of_images(tmp_path: Path) -> None:
    images = make_tiny_store(tmp_path / "acts", "image", d=D_IN)
    index = build_index(make_sae(images), images, tmp_path / "index", progress=False)
    assert index.kind == "image"
    assert index.logits(0) is None
    assert index.examples.thumbnail(3) == images.examples.thumbnail(3)


def test_what_does_not_belong_together_is_listed_at_once(store: ActivationStore, tmp_path: Path) -> None:
    strange = make_sae(
        store, d_in=9, store_hash="f" * 32, hook_point="layers.7", backbone={"spec": "gpt2", "d_model": D_IN}
    )
    with pytest.raises(CheckpointError) as caught:
        build_index(strange, store, tmp_path / "index", hook_point="layers.0")
    message = str(caught.value)
    assert "takes rows of width 9, those of 'layers.0' are 16 wide" in message
    assert "hook point 'layers.7', not 'layers.0'" in message
    assert "spec 'gpt2' instead of 'tiny-text'" in message
    assert "--allow-other-store" in message
    assert not (tmp_path / "index").exists()


def test_another_store_of_the_same_model_needs_the_flag_and_is_recorded(store: ActivationStore, tmp_path: Path) -> None:
    other = make_tiny_store(tmp_path / "other", d=D_IN, seed=5, hook_points=("layers.0", "layers.1"))
    sae = make_sae(store)
    with pytest.raises(CheckpointError, match="another store"):
        build_index(sae, other, tmp_path / "index", progress=False)
    index = build_index(sae, other, tmp_path / "index", allow_other_store=True, progress=False)
    assert index.meta["store"]["is_training_store"] is False


def test_a_checkpoint_without_provenance_must_be_told_the_hook_point(store: ActivationStore, tmp_path: Path) -> None:
    sae = make_sae(None)
    with pytest.raises(StoreError, match="several hook points"):
        build_index(sae, store, tmp_path / "index", progress=False)
    index = build_index(sae, store, tmp_path / "index", hook_point="layers.0", progress=False)
    assert index.meta["store"]["is_training_store"] is None


def test_a_row_that_is_not_finite_is_named_with_its_document(tmp_path: Path) -> None:
    # No extraction writes such a row; a damaged disk does.
    store = make_tiny_store(tmp_path / "acts", d=D_IN, dtype="fp32")
    (file,) = (store.path / "shards" / "00000").glob("layers*.bin")
    with open(file, "r+b") as shard:
        shard.seek(40 * D_IN * 4)
        shard.write(np.float32("nan").tobytes())
    with pytest.raises(StoreError, match=r"Row 40 of .* \(example \d+, 'doc-\d+'\) holds NaN"):
        build_index(make_sae(store), store, tmp_path / "index", batch_size=16, progress=False)


def test_the_logit_lens_is_the_decoder_times_gain_times_unembedding(store: ActivationStore, tmp_path: Path) -> None:
    sae, model = make_sae(store), FakeModel()
    index = build_index(sae, store, tmp_path / "index", backbone=model, progress=False)
    W_U, gain = model.unembedding()
    logits = (sae.W_dec.detach().double() * gain) @ W_U.double()
    logits = (logits - logits.mean(1, keepdim=True)).numpy()
    for feature in (0, 17, 47):
        lens = index.logits(feature)
        assert lens is not None
        order = np.argsort(-logits[feature])
        assert lens.promoted.tolist() == order[:20].tolist()
        assert lens.suppressed.tolist() == order[::-1][:20].tolist()
        assert lens.promoted_values == pytest.approx(logits[feature][order[:20]], abs=1e-4)
        assert lens.suppressed_values == pytest.approx(logits[feature][order[::-1][:20]], abs=1e-4)


def test_neighbours_are_the_highest_cosines_of_decoder_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    W[7] = 3 * W[31]
    unit = W / W.norm(dim=1, keepdim=True)
    expected = unit @ unit.T - 2 * torch.eye(50)
    for entries in (2**25, 170):
        monkeypatch.setattr("saekit.index.dictionary._ENTRIES_AT_ONCE", entries)
        features, cosines = nearest_rows(W, 5)
        assert torch.allclose(cosines, expected.topk(5).values, atol=1e-5)
        assert torch.allclose(expected.gather(1, features.long()), cosines, atol=1e-5)
    assert features[7, 0] == 31
    assert features[31, 0] == 7


def test_decoder_statistics_match_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(8, 20, generator=generator), torch.randn(20, 8, generator=generator)
    arrays = dictionary_arrays(W_enc, W_dec)
    for i in range(20):
        encoder, decoder = W_enc[:, i], W_dec[i]
        assert arrays["statistics/decoder_norm"][i] == pytest.approx(float(decoder.norm()), rel=1e-5)
        cosine = float(encoder @ decoder / encoder.norm() / decoder.norm())
        assert arrays["statistics/encoder_decoder_cosine"][i] == pytest.approx(cosine, abs=1e-5)
    assert (arrays["statistics/nearest_feature"] == arrays["neighbours/features"][:, 0]).all()
    alone = dictionary_arrays(W_enc[:, :1], W_dec[:1])
    assert alone["statistics/nearest_feature"].tolist() == [-1]
    assert alone["neighbours/cosines"].shape == (1, 0)


def test_a_vocabulary_smaller_than_the_list_is_listed_whole() -> None:
    found = logit_lens(torch.randn(3, 4), torch.randn(4, 6), None, 20)
    assert found["logits/promoted"].shape == (3, 6)


def test_a_lens_that_cannot_be_made_says_how_to_leave_it_out(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no logits. .*--no-logit-lens"):
        build_index(make_sae(store), store, tmp_path / "i", backbone=FakeModel(d_model=99), progress=False)
    with pytest.raises(BackboneError, match=r"no language model.*--no-logit-lens"):
        build_index(make_sae(store), store, tmp_path / "i", backbone=FakeImages(), progress=False)
    make_sae(store).save(tmp_path / "checkpoint", store.provenance("layers.1"))
    with pytest.raises(BackboneError, match=r"cannot be loaded: .*tiny-text.*--no-logit-lens"):
        run(IndexConfig(checkpoint=tmp_path / "checkpoint", store=store.path, out=tmp_path / "i"))


def test_an_autoencoder_without_sparse_latents_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a SparseAutoencoder"):
        build_index(Dense(DenseConfig()), store, tmp_path / "index")


def test_the_command_builds_an_index_and_prints_where(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sae(store).save(tmp_path / "run" / "checkpoint", store.provenance("layers.1"))
    out = tmp_path / "index"
    words = ["index", "--checkpoint", str(tmp_path / "run"), "--store", str(store.path), "--out", str(out)]
    assert main([*words, "--no-logit-lens", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert re.search(rf"{out}: 48 features over [\d,]+ rows, L0 4.0", printed.out)
    assert FeatureIndex.open(out, verify=True).d_sae == D_SAE
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_with_one_checkpoint_stands_for_it_and_with_several_does_not(tmp_path: Path) -> None:
    (tmp_path / "one" / "checkpoint").mkdir(parents=True)
    (tmp_path / "one" / "checkpoint" / "meta.json").touch()
    assert find_checkpoint(tmp_path / "one") == tmp_path / "one" / "checkpoint"
    for i in range(2):
        (tmp_path / "two" / f"checkpoint-{i}").mkdir(parents=True)
        (tmp_path / "two" / f"checkpoint-{i}" / "meta.json").touch()
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints; name one of them: .*checkpoint-0.*checkpoint-1"):
        find_checkpoint(tmp_path / "two")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text('{"finished": false}')
    with pytest.raises(CheckpointError, match="not finished"):
        find_checkpoint(tmp_path / "unfinished")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "run.json").write_text('{"finished": true}')
    with pytest.raises(CheckpointError, match="is finished, but its checkpoint/ is gone"):
        find_checkpoint(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a training run"):
        find_checkpoint(tmp_path / "empty")


def test_the_command_loads_the_recorded_language_model_for_the_lens(tmp_path: Path) -> None:
    backbone = load_backbone(tiny.make("llama", tmp_path / "llama"), device="cpu")
    documents = [Document(id=f"d{i}", text=tiny.TEXT, label="text") for i in range(3)]
    store = extract(backbone, documents, hook_points=["layers.0"], out=tmp_path / "acts", progress=False)
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=tiny.WIDTH, d_sae=D_SAE, sparsity=TopK(k=4)))
    sae.save(tmp_path / "checkpoint", store.provenance("layers.0"))
    config = IndexConfig(
        checkpoint=tmp_path / "checkpoint", store=tmp_path / "acts", out=tmp_path / "index", device="cpu"
    )
    index = FeatureIndex.open(run(config))
    assert index.meta["logit_lens_backbone"] == str(tmp_path / "llama")
    lens = index.logits(5)
    assert lens is not None
    W_U, gain = backbone.unembedding()  # type: ignore[attr-defined]
    logits = (sae.W_dec[5].detach() * (1 if gain is None else gain)) @ W_U
    assert lens.promoted[0] == int(logits.argmax())
    assert lens.suppressed[0] == int(logits.argmin())
    assert "fires on" in repr(index[5])
