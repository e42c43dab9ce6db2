"""What holds for every sparsity. A new one in the `Sparsity` union is found here and asks for an example below."""

import json
import typing

import numpy as np
import pytest
import reference
import torch

import saekit as sk
from saekit.autoencoders import Sparsity
from saekit.files import from_tagged, to_tagged

D_IN, D_SAE = 10, 48
EXAMPLES = [
    sk.Relu(l1=0.7),
    sk.KLDivergence(rho=0.1, weight=0.4, momentum=0.0),
    sk.TopK(k=5, auxk=0.3, k_aux=4),
    sk.BatchTopK(k=5, auxk=0.3, k_aux=4),
    sk.MatryoshkaBatchTopK(k=5, auxk=0.3, k_aux=4, prefix_shares=(0.25, 0.5)),
    sk.JumpRelu(weight=0.3, threshold=0.4, bandwidth=0.2),
    sk.JumpRelu(weight=0.3, threshold=0.4, bandwidth=0.2, loss="tanh", pre_act=0.1),
    sk.JumpRelu(weight=0.3, threshold=0.4, bandwidth=0.2, loss="quadratic", target=6.0),
    sk.Gated(l1=0.7),
    sk.PAnneal(weight=0.7),
]
pytestmark = [
    pytest.mark.parametrize("spec", EXAMPLES, ids=lambda spec: type(spec).__name__),
    pytest.mark.parametrize("norm", ["unit", "free"]),
    pytest.mark.parametrize("kernel", ["dense", "sparse"]),
]


def make(spec: Sparsity, norm: str, kernel: str, dtype: torch.dtype = torch.float64) -> sk.SparseAutoencoder:
    config = sk.SparseAutoencoderConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        sparsity=spec,
        decoder_norm=norm,
        kernel=kernel if spec.has_sparse_step else "dense",
        dead_after_tokens=100,
    )
    sae = sk.SparseAutoencoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    sae.set_input_moments_(torch.randn(D_IN, generator=generator), 7.0)
    sae.tokens_since_fired[::3] = 1000
    sae = sae.to(dtype)
    if isinstance(spec, (sk.BatchTopK, sk.MatryoshkaBatchTopK)):
        sae.sparsifier.threshold.fill_(0.6)
        sae.sparsifier.n_batches.fill_(40)
    sae.project_()
    sae.set_progress_(0.5)
    return sae


def batch(n: int = 20, seed: int = 2) -> torch.Tensor:
    return 1 + torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arrays(sae: sk.SparseAutoencoder) -> dict[str, np.ndarray]:
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "input_mean", "input_scale")
    found = {name: getattr(sae, name).detach().numpy().copy() for name in names}
    found |= {name: value.detach().numpy().copy() for name, value in sae.sparsifier.state_dict().items()}
    if isinstance(sae.config.sparsity, sk.PAnneal):
        found["p"] = sae.sparsifier.p(sae.sparsifier.n_updates_done).numpy()
    return found


def test_a_spec_survives_json(spec, norm, kernel):
    assert from_tagged(json.loads(json.dumps(to_tagged(spec))), Sparsity) == spec


def test_every_sparsity_has_an_example(spec, norm, kernel):
    assert {type(example) for example in EXAMPLES} == set(typing.get_args(Sparsity))


def test_encode_decode_and_loss_follow_the_equations(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    weights, is_dead = arrays(sae), sae.is_dead.numpy()
    latents = reference.latents(spec, reference.pre_activations(x.numpy(), weights), weights)
    assert 0 < (latents > sae.sparsifier.active_above).mean() < 0.7
    np.testing.assert_allclose(sae.encode(x).detach(), latents, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        sae.decode(torch.from_numpy(latents)).detach(), reference.decoded(latents, weights), atol=1e-12
    )
    expected = reference.loss(spec, x.numpy(), weights, is_dead, norm == "free")
    assert float(sae.training_loss(x).total.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_the_slope_of_the_equations(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    # AuxK's target is held fixed, which the slope of its value cannot tell: no latent is dead here.
    sae.tokens_since_fired.zero_()
    sae.training_loss(x).total.backward()
    gradients = {"W_enc": sae.W_enc_T.grad.T} | {n: getattr(sae, n).grad for n in ("b_enc", "W_dec", "b_dec")}
    weights, random = arrays(sae), np.random.default_rng(0)
    for name, parameter in sae.sparsifier.named_parameters():
        if name != "threshold":  # its gradient is made up, see the test of straight-through gradients
            gradients[name] = parameter.grad
    for name, gradient in gradients.items():
        direction = random.standard_normal(gradient.shape)
        up, down = (
            reference.loss(
                spec,
                x.numpy(),
                {**weights, name: weights[name] + step * direction},
                sae.is_dead.numpy(),
                norm == "free",
                frozen=weights,
            )
            for step in (1e-6, -1e-6)
        )
        slope = float((gradient * torch.from_numpy(direction)).sum())
        assert slope == pytest.approx((up - down) / 2e-6, rel=1e-6, abs=1e-7), name


def test_encode_sparse_is_encode_without_what_is_inactive(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch(50)
    latents = sae.encode(x).detach()
    expected = torch.where(latents > sae.sparsifier.active_above, latents, 0)
    active = sae.encode_sparse(x)
    torch.testing.assert_close(active.to_dense(D_SAE), expected, rtol=0, atol=1e-12)
    assert len(active.values) == int((expected > 0).sum())
    keys = active.rows() * D_SAE + active.latents
    assert bool((keys.diff() > 0).all())


def test_latents_of_a_row_do_not_depend_on_the_other_rows(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch(50)
    together = sae.encode(x)
    torch.testing.assert_close(sae.encode(x[7:8]), together[7:8], rtol=0, atol=1e-12)


def test_encoding_and_decoding_change_no_state(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae(x)
    sae.encode_sparse(x)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_terms_of_the_loss_add_up_and_hold_no_graph(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    loss = sae.training_loss(x)
    parts = [value for name, value in loss.terms.items() if name not in ("l0", "fvu", "dead")]
    assert len(parts) >= 2
    assert float(sum(parts)) == pytest.approx(float(loss.total.detach()), rel=1e-12)
    assert not any(value.requires_grad for value in (*loss.terms.values(), loss.x_hat))


def test_a_training_step_counts_tokens_and_resets_those_that_fired(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    weights = arrays(sae)
    latents = reference.training_latents(spec, reference.pre_activations(x.numpy(), weights), weights)
    fired = torch.from_numpy((latents > sae.sparsifier.active_above).any(0))
    before = sae.tokens_since_fired.clone()
    sae.training_loss(x)
    assert int(sae.n_tokens_seen) == len(x)
    assert torch.equal(sae.tokens_since_fired, torch.where(fired, 0, before + len(x)))


def test_sparsity_scale_multiplies_the_sparsity_penalty_alone(spec, norm, kernel):
    sae, x = make(spec, norm, kernel), batch()
    full = sae.training_loss(x).terms
    sae.sparsity_scale.fill_(0.25)
    scaled = sae.training_loss(x).terms
    penalties = {"l1", "kl", "l0_loss", "tanh", "lp"} & set(full)
    assert bool(penalties) == spec.has_penalty
    for name in full:
        factor = 0.25 if name in penalties else 1.0
        if name not in ("dead", "auxk", "pre_act"):
            assert float(scaled[name]) == pytest.approx(factor * float(full[name]), rel=1e-12)


def test_half_precision_activations_are_taken_and_parameters_keep_their_type(spec, norm, kernel):
    sae = make(spec, norm, kernel, torch.float32)
    x = batch().to(torch.bfloat16)
    assert sae.encode(x).dtype == sae(x).dtype == torch.float32
    sae.training_loss(x).total.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in sae.parameters())
