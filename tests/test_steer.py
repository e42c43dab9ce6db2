"""Effects of edits on one input, the direct path to a logit, and the job that compares with and without."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saekit.jobs.steer as job
from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.backbones import Backbone, CausalLM, load_backbone
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.evaluation.effects import direct_effects, direct_logit_attribution, prediction_effect, representation_effect
from saekit.files import to_tagged
from saekit.hooks import capture
from saekit.inputs import SkipLog, read_images
from saekit.intervene import Add, Scale, Set, ablate, parse_edits, steer
from saekit.jobs.steer import SteerConfig, run, steer_images, steer_text
from saekit.store import Example
from tests import tiny

POINT = "layers.0"


def make_lm(folder: Path, family: str = "llama") -> CausalLM:
    lm = load_backbone(tiny.make(family, folder))
    assert isinstance(lm, CausalLM)
    # As initialised, all tokens are equally likely whatever is steered.
    for parameter in lm.model.parameters():
        parameter.data *= 20 if parameter.ndim > 1 else 1
    return lm


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return make_lm(tmp_path_factory.mktemp("lm"))


def make_sae(backbone: Backbone, point: str = POINT) -> SparseAutoencoder:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=backbone.d_model, d_sae=48, sparsity=TopK(k=4)))
    sae.input_scale.fill_(0.5)
    sae.input_mean.uniform_(-0.1, 0.1)
    sae.provenance = {
        "backbone": backbone.describe(),
        "hook_point": point,
        "options": to_tagged(backbone.default_options()),
    }
    return sae.requires_grad_(False)


def example(n_tokens: int = 9) -> Example:
    ids = np.random.default_rng(0).integers(3, 20, n_tokens).astype(np.int32)
    return Example(document="d", token_ids=ids, kept=np.arange(1, n_tokens, dtype=np.int32))


def active_latent(lm: CausalLM, sae: SparseAutoencoder, text: Example, position: int) -> int:
    with capture(lm.model, [lm.resolve(POINT)]) as found:
        lm.logits([text])
    return int(sae.encode(found[lm.resolve(POINT)][0, position][None]).argmax())


def test_the_effect_of_an_edit_is_that_of_two_forward_passes(lm: CausalLM) -> None:
    sae, text = make_sae(lm), example()
    latent = active_latent(lm, sae, text, 4)
    found = prediction_effect(lm, POINT, sae, {latent: Scale(0.0)}, text, positions=[4], n_movers=3)
    clean = lm.logits([text])[0].double().log_softmax(-1)
    with ablate(lm, POINT, sae, [latent], positions=[np.array([4])]):
        changed = lm.logits([text])[0].double().log_softmax(-1)
    kl = (clean.exp() * (clean - changed)).sum(-1).numpy()
    assert found.kl == pytest.approx(kl, abs=1e-5)
    # A causal model: what is before the changed token stays as it is.
    assert (found.kl[:4] < 1e-9).all()
    assert found.kl[4] > 1e-6
    difference = (changed.exp() - clean.exp())[4]
    assert found.movers.ids[4].tolist() == difference.abs().topk(3).indices.tolist()
    moved = found.movers.after[4] - found.movers.before[4]
    assert moved == pytest.approx(difference[found.movers.ids[4].tolist()].numpy(), abs=1e-5)
    assert found.top_before.tolist() == clean.argmax(-1).tolist()


def test_an_edit_of_nothing_moves_nothing_and_strangers_are_refused(lm: CausalLM) -> None:
    sae, text = make_sae(lm), example()
    assert prediction_effect(lm, POINT, sae, {}, text).kl.max() < 1e-9
    with pytest.raises(ConfigError, match=r"No such latents: \[48, 99\]; the autoencoder has 0 to 47"):
        prediction_effect(lm, POINT, sae, {99: Set(1.0), 48: Set(1.0), 0: Set(1.0)}, text)
    with pytest.raises(ConfigError, match=r"positions \[9\] do not exist"):
        prediction_effect(lm, POINT, sae, {0: Set(1.0)}, text, positions=[3, 9])


@pytest.mark.parametrize("edit", [Set(3.0), Add(-1.0), Scale(2.5)], ids=str)
@pytest.mark.parametrize("keep_error", [True, False])
def test_the_sparse_path_gives_what_decoding_everything_gives(
    lm: CausalLM, edit: Set | Add | Scale, keep_error: bool
) -> None:
    sae, text = make_sae(lm), example()
    latent = active_latent(lm, sae, text, 4)
    with capture(lm.model, [lm.resolve(POINT)]) as found:
        lm.logits([text])
    x = found[lm.resolve(POINT)][0, 1:].float()
    latents = sae.encode(x)
    edited = latents.clone()
    for each in (latent, 7):
        edited[:, each] = edit(latents[:, each])
    expected = sae.decode(edited) + (x - sae.decode(latents) if keep_error else 0)
    with steer(lm, POINT, sae, {latent: edit, 7: edit}, keep_error=keep_error):
        with capture(lm.model, [lm.resolve("layers.1:input")]) as found:
            lm.logits([text])
    assert torch.allclose(found[lm.resolve("layers.1:input")][0, 1:], expected, atol=1e-4)


def test_positions_in_generate_count_from_the_prompts_first_token(lm: CausalLM) -> None:
    sae = make_sae(lm)
    seen: list[tuple[int, float]] = []

    class Spy(Scale):
        def __call__(self, activation: torch.Tensor) -> torch.Tensor:
            seen.append((len(activation), float(activation.sum())))
            return activation

    n_prompt = len(lm.encode_text("a b c"))
    with steer(lm, POINT, sae, {0: Spy(1.0)}, positions=[np.array([2, n_prompt + 1])]):
        lm.generate("a b c", 5)
    # One token of the prompt's pass, none of the first written, one of the second.
    assert [n for n, _ in seen] == [1, 1]
    with steer(lm, POINT, sae, {0: Spy(1.0)}, positions=[np.array([50])]):
        with pytest.raises(ConfigError, match="at least 51 tokens"):
            lm.logits([example()])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_at_the_last_layer_contributions_constant_and_error_are_the_logit(family: str, tmp_path: Path) -> None:
    lm = make_lm(tmp_path / family, family)
    sae, text = make_sae(lm), example()
    last = f"layers.{lm.n_layers - 1}"
    found = direct_logit_attribution(lm, last, sae, text, position=6, target=11)
    assert len(found.latents) == 4
    assert found.contributions.sum() + found.constant + found.error == pytest.approx(found.logit, rel=1e-3, abs=1e-3)
    assert found.logit == pytest.approx(float(lm.logits([text])[0, 6, 11]), rel=1e-5)
    sizes = np.abs(found.contributions)
    assert (np.diff(sizes) <= 0).all()
    with pytest.raises(ConfigError, match="position=9"):
        direct_logit_attribution(lm, last, sae, text, position=9, target=11)
    with pytest.raises(ConfigError, match="target=-1"):
        direct_logit_attribution(lm, last, sae, text, position=3, target=-1)


def test_direct_effects_are_the_attributions_to_the_predicted_tokens(lm: CausalLM) -> None:
    sae, text = make_sae(lm), example()
    targets, direct = direct_effects(lm, POINT, sae, text)
    assert targets.tolist() == lm.logits([text])[0].argmax(-1).tolist()
    for position in (1, 5):
        one = direct_logit_attribution(lm, POINT, sae, text, position, int(targets[position]))
        # Row by row, latents ascending, four to a row.
        mine = direct[4 * (position - 1) : 4 * position]
        assert mine == pytest.approx(one.contributions[np.argsort(one.latents)], rel=1e-4, abs=1e-5)
    with pytest.raises(ConfigError, match="not on the residual stream"):
        direct_effects(lm, "layers.0.mlp.act_fn", sae, text)


def test_edits_are_read_from_words_and_all_wrong_ones_are_named() -> None:
    assert parse_edits(["17=8", "3+-.5", "4x0"]) == {17: Set(8.0), 3: Add(-0.5), 4: Scale(0.0)}
    with pytest.raises(ConfigError, match=r"'17' is no edit; 'x=3' is no edit; latent 2 is named twice"):
        parse_edits(["17", "x=3", "2=1", "2x0"])
    with pytest.raises(ConfigError, match=r"'17=1e39' is too large; '3\+-1e999' is too large"):
        parse_edits(["17=1e39", "3+-1e999"])
    with pytest.raises(ConfigError, match="none given"):
        parse_edits([])
    assert job.shown_edits(parse_edits(["17=8", "3+-0.5", "4x0"])) == ["17=8", "3+-0.5", "4x0"]


def test_steering_changes_the_text_and_no_hook_is_left(lm: CausalLM) -> None:
    sae = make_sae(lm)
    plain = lm.generate("a b c", 6)
    found = steer_text(lm, POINT, sae, {3: Set(60.0)}, "a b c", 6)
    assert found["without"] == plain
    assert found["with"] != plain
    assert found["next_token_kl"] > 0
    assert found["movers"][0]["before"] != found["movers"][0]["after"]
    assert lm.generate("a b c", 6) == plain
    with pytest.raises(InputError, match="empty"):
        steer_text(lm, POINT, sae, {3: Set(60.0)}, " ")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        Image.fromarray(np.asarray(tiny.image(seed=i))).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_an_image_is_compared_by_representation_and_by_class_where_there_is_one(
    family: str, pictures: Path, tmp_path: Path
) -> None:
    vit = load_backbone(tiny.make(family, tmp_path / family))
    sae = make_sae(vit)
    (first, *others) = vit.examples(read_images(pictures), vit.default_options(), SkipLog())
    one = representation_effect(vit, POINT, sae, {3: Add(5.0)}, first, positions=[int(first.kept[2])])
    assert one.by_token[2] == one.by_token.max() > 0
    assert representation_effect(vit, POINT, sae, {}, first).relative < 1e-6
    found = steer_images(vit, POINT, sae, {3: Add(5.0)}, [first, *others])
    assert [each["image"] for each in found["images"]] == ["0.png", "1.png", "2.png"]
    assert all(each["representation_change"] > 0.001 for each in found["images"])
    assert ("class_kl" in found["images"][0]) == (family == "vit")
    if family == "dinov2":
        with pytest.raises(BackboneError, match="without a classification head"):
            prediction_effect(vit, POINT, sae, {3: Add(5.0)}, first)


def test_the_job_prints_both_texts_and_writes_them(
    lm: CausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_backbone", lambda spec, device: lm)
    make_sae(lm).save(tmp_path / "sae", provenance=make_sae(lm).provenance)
    out = tmp_path / "steering.json"
    config = SteerConfig(checkpoint=tmp_path / "sae", edits=("3=60",), prompt="a b c", n_tokens=4, out=out)
    assert run(config) == out
    written = json.loads(out.read_text())
    assert (written["kind"], written["edits"]) == ("Steering", ["3=60"])
    shown = capsys.readouterr().out
    assert f"with     {written['with']}" in shown
    assert written["without"] != written["with"]
    with pytest.raises(ConfigError, match="reads texts"):
        run(SteerConfig(checkpoint=tmp_path / "sae", edits=("3=60",), inputs=tmp_path))


def test_the_job_refuses_before_it_loads_a_model(lm: CausalLM, tmp_path: Path) -> None:
    make_sae(lm).save(tmp_path / "sae", provenance=make_sae(lm).provenance)
    with pytest.raises(ConfigError, match=r"No such latents: \[48\]"):
        run(SteerConfig(checkpoint=tmp_path / "sae", edits=("48=1",), prompt="x"))
    with pytest.raises(ConfigError, match="either --prompt"):
        SteerConfig(checkpoint=tmp_path, edits=("1=1",))
    with pytest.raises(ConfigError, match="is a folder"):
        run(SteerConfig(checkpoint=tmp_path / "sae", edits=("1=1",), prompt="x", out=tmp_path))
