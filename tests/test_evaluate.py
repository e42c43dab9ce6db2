"""The job as a whole, on a tiny model and a real store of its activations: closed-form autoencoders and refusals."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saekit.jobs.evaluate as job
from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.backbones import Backbone, CausalLM, load_backbone
from saekit.errors import CheckpointError, ConfigError, InputError, StoreError
from saekit.evaluation import Evaluation
from saekit.evaluation.rows import mean_and_covariance, random_documents, row_chunks, split_examples
from saekit.files import to_tagged
from saekit.inputs import Document, SkipLog, read_images
from saekit.jobs.evaluate import EvaluateConfig, evaluate, run
from saekit.store import ActivationStore, Example, StoreWriter
from saekit.store.split import held_out, training_rows
from tests import tiny
from tests.stores import make_tiny_store

POINT = "layers.0"


def make_store(path: Path, backbone: Backbone, examples: Sequence[Example], dtype: str = "fp32") -> ActivationStore:
    """What extraction writes for these examples."""
    plan = {"backbone": backbone.describe(), "options": to_tagged(backbone.default_options())}
    widths = {POINT: backbone.width(POINT)}
    parts: list[torch.Tensor] = [torch.empty(0)] * len(examples)
    for indices, found in backbone.activations(examples, [POINT], batch_size=4):
        rows = found[POINT].split([len(examples[i].kept) for i in indices])
        for index, part in zip(indices, rows, strict=True):
            parts[index] = part
    with StoreWriter(path, hook_points=widths, dtype=dtype, layout=backbone.layout, plan=plan) as writer:
        writer.write_shard(list(examples), {POINT: torch.cat(parts)})
        writer.finish()
    return ActivationStore.open(path)


def make_lm(folder: Path, seed: int = 0) -> CausalLM:
    lm = load_backbone(tiny.make("llama", folder, seed))
    assert isinstance(lm, CausalLM)
    # As initialised, every next token is as likely as any other whatever is spliced in.
    for parameter in lm.model.parameters():
        parameter.data *= 20 if parameter.ndim > 1 else 1
    return lm


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return make_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def store(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    random = np.random.default_rng(0)
    texts = [" ".join(chr(97 + i) for i in random.integers(0, 20, random.integers(6, 20))) for _ in range(24)]
    documents = [Document(id=f"d{i}", text=text, label=None) for i, text in enumerate(texts)]
    examples = list(lm.examples(documents, lm.default_options(), SkipLog()))
    return make_store(tmp_path_factory.mktemp("store") / "acts", lm, examples)


def make_sae(store: ActivationStore, d_sae: int = 64, sparsity: Relu | TopK | None = None) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(d_in=store.d_model(), d_sae=d_sae, sparsity=sparsity or TopK(k=4))
    sae = SparseAutoencoder(config)
    sae.provenance = {**store.provenance(), "held_out_share": 0.4}
    return sae


def identity_sae(store: ActivationStore) -> SparseAutoencoder:
    """x = relu(x) - relu(-x)."""
    d_in = store.d_model()
    sae = make_sae(store, 2 * d_in, Relu())
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    sae.W_dec.data.copy_(both)
    sae.W_enc.data.copy_(both.T)
    sae.b_enc.data.zero_()
    return sae


def silent_sae(store: ActivationStore, mean: torch.Tensor | None = None) -> SparseAutoencoder:
    """Never fires: reconstructs zero, or the mean if it has one."""
    sae = make_sae(store, sparsity=Relu())
    sae.b_enc.data.fill_(-1e9)
    if mean is not None:
        sae.set_input_moments_(mean, float(store.d_model()))
    return sae


def measured(
    sae: SparseAutoencoder, store: ActivationStore, lm: CausalLM | None, usefulness: bool = False
) -> Evaluation:
    return evaluate(sae, store, backbone=lm, n_examples=8, batch_size=3, n_bootstrap=100, usefulness=usefulness)


def test_the_identity_autoencoder_has_fvu_zero_and_recovers_everything(store: ActivationStore, lm: CausalLM) -> None:
    found = measured(identity_sae(store), store, lm)
    assert found.sae.reconstruction is not None
    assert found.sae.reconstruction.fvu < 1e-12
    assert found.sae.faithfulness["ce_recovered_zero"] == pytest.approx(1, abs=1e-5)
    assert found.sae.faithfulness["ce_recovered_mean"] == pytest.approx(1, abs=1e-5)
    assert found.latents.l0 == pytest.approx(store.d_model())
    assert found.latents.silent_share == 0
    assert found.faithfulness["activation_difference"] < 1e-5
    assert found.headline()["fvu"] == found.sae.reconstruction.fvu


def test_a_silent_autoencoder_recovers_nothing_of_the_zero_or_of_the_mean_ablation(
    store: ActivationStore, lm: CausalLM
) -> None:
    zero = measured(silent_sae(store), store, lm)
    assert zero.sae.faithfulness["ce_recovered_zero"] == 0
    assert zero.latents.silent_share == 1
    assert zero.latents.l0 == 0
    mean = torch.from_numpy(store.moments()[0]).float()
    at_mean = measured(silent_sae(store, mean), store, lm)
    assert at_mean.sae.faithfulness["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert at_mean.sae.reconstruction is not None
    assert at_mean.sae.reconstruction.fvu == pytest.approx(1, abs=0.05)


def test_the_baselines_stand_where_they_must(store: ActivationStore, lm: CausalLM) -> None:
    found = measured(make_sae(store), store, lm)
    by_name = {method.name: method for method in found.methods}
    assert list(by_name) == ["sae", "identity", "pca", "pca, equal fvu", "random dictionary", "mean", "zero"]
    fvu = {name: method.reconstruction.fvu for name, method in by_name.items() if method.reconstruction}
    assert fvu["identity"] == 0
    assert 0 < fvu["pca"] < fvu["random dictionary"] < fvu["mean"]
    assert by_name["identity"].faithfulness["ce_recovered_zero"] == 1
    assert by_name["identity"].faithfulness["kl"] == 0
    assert by_name["zero"].faithfulness["ce_recovered_zero"] == 0
    assert by_name["mean"].faithfulness["ce_recovered_mean"] == 0
    assert by_name["pca"].k == by_name["random dictionary"].k == round(found.latents.l0)
    table = found.table()
    assert all(name in table for name in by_name)
    assert "held out of training" in table


def test_cross_entropies_agree_with_a_forward_whose_rows_are_written_over(store: ActivationStore, lm: CausalLM) -> None:
    """Brute force: one unpadded window at a time, the reconstruction written into the second block's input."""
    sae = make_sae(store)
    found = evaluate(sae, store, backbone=lm, held_out_share=0.0, n_examples=1000, batch_size=5, n_bootstrap=10)
    clean, spliced = [], []
    block = lm.model.get_submodule(lm.resolve("layers.1").partition(":")[0])
    for i in range(len(store.examples)):
        example = store.examples[i]
        assert example.token_ids is not None
        ids = torch.from_numpy(example.token_ids.astype(np.int64))[None]
        rows = store.rows(int(store.examples.row_offsets[i]), int(store.examples.row_offsets[i + 1]))
        written = sae(rows).detach()

        def overwrite(module, args, kwargs, written=written, kept=example.kept):  # type: ignore[no-untyped-def]
            hidden = args[0].clone()
            hidden[0, kept] = written
            return (hidden, *args[1:]), kwargs

        for losses, hook in ((clean, None), (spliced, overwrite)):
            handle = block.register_forward_pre_hook(hook, with_kwargs=True) if hook else None
            with torch.no_grad():
                logits = lm.model(input_ids=ids, use_cache=False).logits[0]
            if handle:
                handle.remove()
            losses += torch.nn.functional.cross_entropy(logits[1:-1], ids[0, 2:], reduction="none").tolist()
    assert found.faithfulness["n_predictions"] == len(clean)
    assert found.faithfulness["cross_entropy_clean"] == pytest.approx(np.mean(clean), rel=1e-5)
    assert found.sae.faithfulness["cross_entropy"] == pytest.approx(np.mean(spliced), rel=1e-5)


def test_only_held_out_documents_are_measured_and_training_sees_the_others(store: ActivationStore) -> None:
    found = evaluate(make_sae(store), store, n_bootstrap=10)
    is_out = held_out(store.examples.documents, 0.4)
    assert 0 < is_out.sum() < len(is_out)
    row_document = np.asarray(store.examples.document_of)[store.row_example]
    rows = np.flatnonzero(is_out[row_document])
    x = store.take(rows).double()
    x_hat = make_sae(store)(x.float()).detach().double()
    expected = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert found.data["n_tokens"] == len(rows)
    assert found.data["n_documents"] == is_out.sum()
    assert found.data["held_out_share"] == 0.4
    assert found.sae.reconstruction is not None
    assert found.sae.reconstruction.fvu == pytest.approx(expected, rel=1e-6)
    trained_on = training_rows(store.examples, 0.4)
    assert sorted([*trained_on, *rows]) == list(range(store.n_rows))
    loader = store.batches(16, rows=trained_on, n_tokens=len(trained_on))
    seen = torch.cat(list(loader))
    assert torch.equal(seen.sort(0).values, store.take(trained_on).sort(0).values)


def test_the_split_is_a_property_of_the_id_grows_with_the_share_and_is_near_it() -> None:
    ids = [f"news/{i}.txt" for i in range(4000)] + ["\udcff broken name"]
    small, large = held_out(ids, 0.05), held_out(ids, 0.2)
    assert (small <= large).all()
    assert small.mean() == pytest.approx(0.05, abs=0.015)
    assert large.mean() == pytest.approx(0.2, abs=0.03)
    assert held_out(ids[::-1], 0.2).tolist() == large[::-1].tolist()
    assert not held_out(ids, 0.0).any()
    # The rule is part of the format: a change would put training documents among the held-out ones.
    assert [i for i in ids[:60] if held_out([i], 0.05)[0]] == [f"news/{i}.txt" for i in (9, 18, 45, 55, 56)]
    with pytest.raises(ConfigError, match="below 1"):
        held_out(ids, 1.0)


def test_rows_are_read_in_order_whatever_the_chunk(store: ActivationStore) -> None:
    examples, _ = split_examples(store, 0.4)
    whole = [list(row_chunks(store, examples, POINT, chunk_rows=n)) for n in (7, 64, 10_000)]
    rows = [torch.cat([x for x, _ in chunks]) for chunks in whole]
    documents = [np.concatenate([d for _, d in chunks]) for chunks in whole]
    numbers = np.concatenate([np.arange(*store.examples.row_offsets[i : i + 2]) for i in examples])
    assert all(torch.equal(x, store.take(numbers)) for x in rows)
    expected = np.asarray(store.examples.document_of)[store.row_example[numbers]]
    assert all((d == expected).all() for d in documents)
    assert all(len(x) == 7 for x, _ in whole[0][:-1])


def test_random_documents_are_whole_and_enough(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s", n_examples=30)
    everything = np.arange(30)
    chosen = random_documents(store, everything, 60, seed=1)
    counts, document_of = np.diff(store.examples.row_offsets), np.asarray(store.examples.document_of)
    assert counts[chosen].sum() >= 60
    assert set(chosen) == set(np.flatnonzero(np.isin(document_of, document_of[chosen])))
    assert len(random_documents(store, everything, 10**9, seed=1)) == 30
    mean, covariance = mean_and_covariance(store, everything, "layers.1")
    x = store.rows(0, store.n_rows).double()
    assert torch.allclose(mean, x.mean(0), atol=1e-6)
    assert torch.allclose(covariance, torch.cov(x.T, correction=0), atol=1e-5)


def test_run_writes_metrics_that_other_readers_accept_and_prints_the_table(
    store: ActivationStore,
    lm: CausalLM,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "load_backbone", lambda spec, dtype, device: lm)
    make_sae(store).save(tmp_path / "checkpoint")
    config = EvaluateConfig(checkpoint=tmp_path / "checkpoint", store=store.path, out=tmp_path / "eval", n_examples=4)
    path = run(config)
    written = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert path == tmp_path / "eval" / "metrics.json"
    assert (written["kind"], written["schema"]) == ("Evaluation", 1)
    assert written["headline"]["ce_recovered_zero"] == written["methods"][0]["faithfulness"]["ce_recovered_zero"]
    assert written["data"]["is_store_of_training"] is True
    assert written["config"]["n_examples"] == 4
    assert written["methods"][0]["name"] == "sae"
    assert "density" not in written["latents"]
    shown = capsys.readouterr().out
    assert "random dictionary" in shown
    assert str(path) in shown
    again = run(config)
    assert json.loads(again.read_text()) == written


def keys(value: object) -> set[str]:
    """Every key of nested JSON objects that the specification must name."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_every_key_that_is_written_is_specified(
    store: ActivationStore, lm: CausalLM, images: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## metrics.json")[2].partition("\n## ")[0]
    specified = set(re.findall(r"`(\w+)`", section))
    vit = load_backbone(tiny.make("vit", tmp_path / "vit"))
    examples = list(vit.examples(read_images(images), vit.default_options(), SkipLog()))
    pictures = make_store(tmp_path / "acts", vit, examples)
    found = [
        measured(make_sae(store), store, lm, usefulness=True),
        evaluate(make_sae(pictures), pictures, backbone=vit, inputs=read_images(images), n_bootstrap=10),
    ]
    for evaluation in found:
        written = evaluation.to_json()
        del written["checkpoint"]["config"], written["headline"]
        assert keys(written) - specified == set()
    assert {"fvu", "silent_share", "kl_q99", "knn_accuracy_interval"} <= keys([e.to_json() for e in found])


def test_without_a_backbone_the_reason_is_said(store: ActivationStore, tmp_path: Path) -> None:
    make_sae(store).save(tmp_path / "checkpoint")
    path = run(EvaluateConfig(checkpoint=tmp_path / "checkpoint", store=store.path, out=tmp_path, backbone="none"))
    assert json.loads(path.read_text())["faithfulness"] == {"skipped": "no backbone was asked for (--backbone none)"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of colours, eight pictures each."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        (folder / f"class_{i % 3}").mkdir(exist_ok=True)
        picture = np.asarray(tiny.image(seed=i)) // 2
        picture[..., i % 3] += 120
        Image.fromarray(picture).save(folder / f"class_{i % 3}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_images_are_spliced_in_the_model_and_their_final_representation_compared(
    family: str, images: Path, tmp_path: Path
) -> None:
    vit = load_backbone(tiny.make(family, tmp_path / family))
    examples = list(vit.examples(read_images(images), vit.default_options(), SkipLog()))
    store = make_store(tmp_path / "acts", vit, examples)
    exact = evaluate(
        identity_sae(store), store, backbone=vit, inputs=read_images(images), held_out_share=0.0, n_bootstrap=50
    )
    assert exact.faithfulness["n_examples"] == exact.faithfulness["n_labelled"] == 24
    assert exact.faithfulness["n_classes"] == 3
    assert exact.faithfulness["activation_difference"] < 1e-5
    numbers = exact.sae.faithfulness
    assert numbers["representation_recovered_zero"] == pytest.approx(1, abs=1e-6)
    assert numbers["knn_accuracy"] == exact.faithfulness["knn_accuracy_clean"] > 0.5
    assert ("class_agreement" in numbers) == (family == "vit")
    if family == "vit":
        assert numbers["class_agreement"] == 1
        assert numbers["kl"] == pytest.approx(0, abs=1e-9)
    silent = evaluate(silent_sae(store), store, backbone=vit, inputs=read_images(images), n_examples=6, n_bootstrap=50)
    assert silent.sae.faithfulness["representation_recovered_zero"] == 0
    assert "kNN accuracy" in exact.table()


def test_images_are_needed_again_and_all_that_are_missing_are_named(images: Path, tmp_path: Path) -> None:
    vit = load_backbone(tiny.make("vit", tmp_path / "vit"))
    examples = list(vit.examples(read_images(images), vit.default_options(), SkipLog()))[:8]
    store = make_store(tmp_path / "acts", vit, examples)
    sae = make_sae(store)
    found = evaluate(sae, store, backbone=vit, held_out_share=0.0, n_bootstrap=10)
    assert found.faithfulness == {"skipped": "the images were not given; the store has thumbnails only"}
    assert "Faithfulness not measured: the images were not given" in found.table()
    some = [image for image in read_images(images) if image.id not in ("class_0/0.png", "class_0/12.png")]
    with pytest.raises(InputError, match="2 of the 8 images .*: class_0/0.png, class_0/12.png"):
        evaluate(sae, store, backbone=vit, inputs=some, held_out_share=0.0, n_bootstrap=10)
    sae.save(tmp_path / "checkpoint")
    config = EvaluateConfig(
        checkpoint=tmp_path / "checkpoint", store=store.path, out=tmp_path / "eval", held_out_share=0.0
    )
    assert "--inputs FOLDER" in json.loads(run(config).read_text())["faithfulness"]["skipped"]


def test_what_does_not_belong_together_is_refused(store: ActivationStore, lm: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="width 5"):
        evaluate(SparseAutoencoder(SparseAutoencoderConfig(d_in=5, d_sae=40)), store)
    stranger = make_tiny_store(tmp_path / "other", d=store.d_model(), hook_points=[POINT])
    sae = make_sae(store)
    with pytest.raises(CheckpointError, match="another backbone"):
        evaluate(sae, stranger)
    sae.provenance = None
    with pytest.raises(ConfigError, match="does not give the stored activations"):
        evaluate(sae, stranger, backbone=lm)
    same_texts = make_store(tmp_path / "same", lm, [store.examples[i] for i in range(4)])
    with pytest.raises(ConfigError, match="does not give the stored activations"):
        evaluate(sae, same_texts, backbone=make_lm(tmp_path / "lm", seed=1))
    with pytest.raises(ConfigError, match="None of the 2[34] documents"):
        evaluate(sae, store, held_out_share=1e-9)
    with pytest.raises(ConfigError, match="n_examples=0.*batch_size=0"):
        EvaluateConfig(checkpoint=tmp_path, store=tmp_path, out=tmp_path, n_examples=0, batch_size=0)


def test_activations_that_are_not_finite_are_refused(store: ActivationStore, lm: CausalLM, tmp_path: Path) -> None:
    altered = make_store(tmp_path / "s", lm, [store.examples[i] for i in range(4)])
    (file,) = altered.path.glob("shards/00000/*.bin")
    data = np.memmap(file, np.float32, "r+")
    data[37] = np.nan
    data.flush()
    with pytest.raises(StoreError, match="NaN or infinite"):
        evaluate(make_sae(store), altered, held_out_share=0.0)
