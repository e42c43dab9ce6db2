"""Splicing, ablating and steering: exactly the asked-for tokens change, and nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.autoencoders import KLDivergence, Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.backbones import Backbone, CausalLM, load_backbone
from saekit.errors import ConfigError, HookPointError
from saekit.hooks import capture
from saekit.inputs import SkipLog, read_images
from saekit.intervene import Add, Scale, Set, ablate, splice, steer
from saekit.store import Example
from tests import tiny

POINT = "layers.0"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    lm = load_backbone(tiny.make("llama", tmp_path_factory.mktemp("lm")))
    assert isinstance(lm, CausalLM)
    # As initialised, all tokens are equally likely whatever is steered.
    for parameter in lm.model.parameters():
        parameter.data *= 20 if parameter.ndim > 1 else 1
    return lm


@pytest.fixture
def sae(lm: CausalLM) -> SparseAutoencoder:
    return make_sae(lm, TopK(k=4))


def make_sae(lm: CausalLM, sparsity: TopK | Relu | KLDivergence) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(d_in=lm.d_model, d_sae=3 * lm.d_model, sparsity=sparsity)
    return SparseAutoencoder(config).requires_grad_(False)


def example(lm: CausalLM, n_tokens: int, seed: int = 0) -> Example:
    ids = np.random.default_rng(seed).integers(3, 20, n_tokens).astype(np.int32)
    return Example(document=f"d{seed}", token_ids=ids, kept=np.arange(1, n_tokens, dtype=np.int32))


def stream(lm: CausalLM, ids: list[list[int]], **inputs: Tensor) -> Tensor:
    """What the second block reads."""
    path = lm.resolve("layers.1:input")
    with torch.no_grad(), capture(lm.model, [path]) as found:
        lm.model(input_ids=torch.tensor(ids), use_cache=False, **inputs)
    return found[path]


def n_hooks(lm: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


IDS = [[0, 5, 9, 4, 7, 3]]


def test_splice_replaces_every_token_but_the_dropped_first(lm: CausalLM) -> None:
    clean = stream(lm, IDS)
    with splice(lm, POINT, lambda rows: rows * 2 + 1):
        spliced = stream(lm, IDS)
    assert torch.equal(spliced[:, :1], clean[:, :1])
    assert torch.allclose(spliced[:, 1:], clean[:, 1:] * 2 + 1)
    assert torch.equal(stream(lm, IDS), clean)


def test_splice_with_positions_replaces_exactly_those(lm: CausalLM) -> None:
    ids = [[0, 5, 9, 4], [0, 8, 6, 11]]
    clean = stream(lm, ids)
    positions = [np.array([0, 3], dtype=np.int32), np.array([2], dtype=np.int32)]
    with splice(lm, POINT, torch.zeros_like, positions=positions):
        spliced = stream(lm, ids)
    changed = torch.tensor([[True, False, False, True], [False, False, True, False]])
    assert (spliced[changed] == 0).all()
    assert torch.equal(spliced[~changed], clean[~changed])


def test_an_identity_splice_gives_the_same_logits_bit_for_bit(lm: CausalLM) -> None:
    examples = [example(lm, 9), example(lm, 5, seed=1)]
    clean = lm.logits(examples)
    with splice(lm, POINT, lambda rows: rows, positions=[e.kept for e in examples]):
        assert torch.equal(lm.logits(examples), clean)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_spliced_on_either_side(lm: CausalLM, side: str) -> None:
    ids, mask = [[0, 5, 9, 4, 0, 0]], [[1, 1, 1, 1, 0, 0]]
    if side == "left":
        ids, mask = [[0, 0, 0, 5, 9, 4]], [[0, 0, 1, 1, 1, 1]]
    clean = stream(lm, ids, attention_mask=torch.tensor(mask))
    with splice(lm, POINT, torch.zeros_like):
        spliced = stream(lm, ids, attention_mask=torch.tensor(mask))
    is_zero = (spliced == 0).all(-1)[0].tolist()
    assert is_zero == ([False, True, True, True, False, False] if side == "right" else [False] * 3 + [True] * 3)
    assert torch.equal(spliced[0][~torch.tensor(is_zero)], clean[0][~torch.tensor(is_zero)])


def test_generate_with_a_cache_changes_every_token_after_the_first_and_only_once(lm: CausalLM) -> None:
    seen: list[int] = []

    def count(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows

    prompt = "a b c"
    n_prompt = len(lm.encode_text(prompt))
    clean = lm.generate(prompt, 4)
    with splice(lm, POINT, count):
        assert lm.generate(prompt, 4) == clean
    assert seen[0] == n_prompt - 1
    assert seen[1:]
    assert set(seen[1:]) == {1}


def test_steering_changes_what_is_generated_and_only_inside_the_block(lm: CausalLM, sae: SparseAutoencoder) -> None:
    clean = lm.generate("a b c", 6)
    with steer(lm, POINT, sae, {3: Set(100.0)}):
        steered = lm.generate("a b c", 6)
    assert steered != clean
    assert lm.generate("a b c", 6) == clean


def test_cached_and_whole_passes_are_steered_alike(lm: CausalLM, sae: SparseAutoencoder) -> None:
    ids = torch.tensor(IDS)
    with torch.no_grad(), steer(lm, POINT, sae, {3: Set(5.0), 7: Add(2.0)}):
        whole = lm.model(input_ids=ids, use_cache=False).logits
        first = lm.model(input_ids=ids[:, :4], use_cache=True)
        second = lm.model(input_ids=ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat([first.logits, second.logits], 1), whole, atol=1e-5)


@pytest.mark.parametrize("sparsity", [TopK(k=4), Relu(), KLDivergence()], ids=str)
def test_steering_adds_the_change_of_the_latent_times_its_decoder_row(
    lm: CausalLM, sparsity: TopK | Relu | KLDivergence
) -> None:
    sae = make_sae(lm, sparsity)
    clean = stream(lm, IDS)[0]
    latents = sae.encode(clean)
    latent = int(latents[1:].sum(0).argmax())
    for edit, wanted in (
        (Set(3.0), torch.full((6,), 3.0)),
        (Scale(0.5), latents[:, latent] * 0.5),
        (Add(2.0), latents[:, latent] + 2.0),
    ):
        with steer(lm, POINT, sae, {latent: edit}):
            steered = stream(lm, IDS)[0]
        expected = clean + (wanted - latents[:, latent])[:, None] * sae.W_dec[latent] / sae.input_scale
        assert torch.allclose(steered[1:], expected[1:], atol=1e-4)
        assert torch.equal(steered[0], clean[0])


def test_no_edits_change_nothing_unless_the_error_is_dropped(lm: CausalLM, sae: SparseAutoencoder) -> None:
    clean = stream(lm, IDS)
    with steer(lm, POINT, sae, {}):
        assert torch.equal(stream(lm, IDS), clean)
    with steer(lm, POINT, sae, {}, keep_error=False):
        spliced = stream(lm, IDS)
    assert torch.allclose(spliced[0, 1:], sae(clean[0, 1:]), atol=1e-5)


def test_ablating_a_latent_removes_its_contribution_where_it_fires(lm: CausalLM, sae: SparseAutoencoder) -> None:
    clean = stream(lm, IDS)[0]
    latents = sae.encode(clean)
    active = latents[1:].sum(0).topk(2).indices.tolist()
    with ablate(lm, POINT, sae, active):
        ablated = stream(lm, IDS)[0]
    removed = latents[:, active] @ sae.W_dec[active] / sae.input_scale
    assert torch.allclose(ablated[1:], (clean - removed)[1:], atol=1e-4)
    assert not torch.allclose(ablated[1:], clean[1:], atol=1e-3)


def test_interventions_nest(lm: CausalLM) -> None:
    clean = stream(lm, IDS)
    with splice(lm, POINT, lambda rows: rows * 2), splice(lm, POINT, lambda rows: rows + 1):
        both = stream(lm, IDS)
    assert torch.allclose(both[:, 1:], clean[:, 1:] * 2 + 1)


def test_no_hook_is_left_also_after_an_exception(lm: CausalLM, sae: SparseAutoencoder) -> None:
    before, clean = n_hooks(lm), stream(lm, IDS)
    with pytest.raises(ZeroDivisionError):
        with steer(lm, POINT, sae, {0: Set(1.0)}):
            assert n_hooks(lm) > before
            raise ZeroDivisionError

    def fails(rows: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), splice(lm, POINT, fails):
        stream(lm, IDS)
    assert n_hooks(lm) == before
    assert torch.equal(stream(lm, IDS), clean)


def test_mistakes_are_named_before_or_at_the_pass_and_leave_no_hook(lm: CausalLM, sae: SparseAutoencoder) -> None:
    before = n_hooks(lm)
    with pytest.raises(ConfigError, match=r"No such latents: \[-1, 999\]; the autoencoder has 0 to"):
        with ablate(lm, POINT, sae, [999, 3, -1]):
            pass
    narrow = SparseAutoencoder(SparseAutoencoderConfig(d_in=5, d_sae=9, sparsity=Relu()))
    with pytest.raises(ConfigError, match="takes width 5"):
        with steer(lm, POINT, narrow, {}):
            pass
    with pytest.raises(HookPointError, match="Closest"):
        with splice(lm, "layers.77", torch.zeros_like):
            pass
    with pytest.raises(ConfigError, match="has shape"):
        with splice(lm, POINT, lambda rows: rows[:, :3]):
            stream(lm, IDS)
    with pytest.raises(ConfigError, match="positions are for 2 sequences"):
        with splice(lm, POINT, torch.zeros_like, positions=[np.array([1]), np.array([1])]):
            stream(lm, IDS)
    assert n_hooks(lm) == before


@pytest.mark.embedded
def test_smollm2_is_spliced_and_steered_and_is_itself_again_afterwards() -> None:
    lm = load_backbone("smollm2")
    assert isinstance(lm, CausalLM)
    point, prompt = "layers.15", "The capital of Italy is"
    example = Example(
        document="d", token_ids=np.array(lm.encode_text(prompt), np.int32), kept=np.arange(1, 6, dtype=np.int32)
    )
    clean_logits, clean = lm.logits([example]), lm.generate(prompt, 4)
    assert "Rome" in clean
    with splice(lm, point, lambda rows: rows, positions=[example.kept]):
        assert torch.equal(lm.logits([example]), clean_logits)
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=lm.d_model, d_sae=1024)).requires_grad_(False)
    with steer(lm, point, sae, {5: Set(3000.0)}):
        assert lm.generate(prompt, 4) != clean
    assert lm.generate(prompt, 4) == clean
    assert n_hooks(lm) == 0


@pytest.mark.embedded
def test_dinov2_keeps_its_class_token_and_loses_its_patches(tmp_path: Path) -> None:
    vit = load_backbone("dinov2")
    point = "layers.8"
    tiny.image(90, 70).save(tmp_path / "picture.png")
    examples = list(vit.examples(read_images(tmp_path), vit.default_options(), SkipLog()))
    path = vit.resolve("layers.9:input")
    with splice(vit, point, torch.zeros_like), torch.no_grad(), capture(vit.model, [path]) as found:
        ((_, rows),) = vit.activations(examples, ["layers.9:input"], batch_size=1)
    assert (rows["layers.9:input"] == 0).all()
    assert rows["layers.9:input"].shape == (256, 384)
    assert (found[path][0, 0] != 0).any()
    assert n_hooks(vit) == 0
