"""Recipes by name, weights between units, resampling, and the health report."""

import dataclasses
import json
import logging
import math

import pytest
import torch
from torch import Tensor

import saekit as sk
from saekit.training import FitConfig, fit
from saekit.training.health import measure_health
from saekit.training.recipes import RECIPES, get_recipe
from saekit.training.resample import DeadResampler, forget_latents_
from saekit.training.scaling import LossScale, convert_weight, warn_about_weight

D_IN, D_SAE = 12, 48


def rows(n: int = 512, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def make(sparsity=None, x: Tensor | None = None, **settings) -> sk.SparseAutoencoder:
    config = sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sparsity or sk.Relu(l1=1.0), **settings)
    sae = sk.SparseAutoencoder(config)
    x = rows() if x is None else x
    sae.set_input_moments_(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    return sae


@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize(
    "given", [LossScale(inputs=i, errors=e) for i in ("raw", "unit", "sqrt_d") for e in ("sum", "mean")], ids=str
)
def test_a_converted_weight_makes_the_same_loss_up_to_a_factor(given, penalty):
    # One dictionary, seen in two units: the losses must be proportional, so their optima are the same.
    x, generator = rows().double(), torch.Generator().manual_seed(1)
    x = x - x.mean(0)
    raw = float(x.square().sum(1).mean())
    codes = torch.rand(2, len(x), D_SAE, generator=generator, dtype=torch.float64).sub(0.7).relu() * 5
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64), dim=1)
    weight = 0.37
    ours = convert_weight(weight, D_IN, penalty=penalty, given=given, mean_squared_norm=raw)

    def loss(code: Tensor, scale: LossScale, weight: float) -> float:
        s = math.sqrt({"raw": raw, "unit": 1.0, "sqrt_d": float(D_IN)}[scale.inputs] / raw)
        error = (s * (x - code @ W_dec)).square().sum(1).mean() / (D_IN if scale.errors == "mean" else 1)
        size = (s * code).sum(1) if penalty == "l1" else (code > 0).sum(1).double()
        return float(error + weight * size.mean())

    theirs = [loss(code, given, weight) for code in codes]
    found = [loss(code, LossScale(), ours) for code in codes]
    assert found[0] / theirs[0] == pytest.approx(found[1] / theirs[1], rel=1e-12)
    back = convert_weight(ours, D_IN, penalty=penalty, given=LossScale(), wanted=given, mean_squared_norm=raw)
    assert back == pytest.approx(weight)


def test_published_weights_convert_to_the_published_ones():
    # dictionary_learning's 0.04 at mean squared norm 1 is about SAELens' 1.1 at d_in = 768; saev's 8e-4 is of means.
    assert convert_weight(0.04, 768, given=LossScale(inputs="unit")) == pytest.approx(1.11, abs=0.01)
    assert convert_weight(8e-4, 768, given=LossScale(errors="mean")) == pytest.approx(0.6144)
    with pytest.raises(sk.ConfigError, match="needs their mean_squared_norm above 0, got None"):
        convert_weight(1.0, 768, given=LossScale(inputs="raw"))


def test_a_weight_in_other_units_is_told_with_its_converted_value(caplog):
    with caplog.at_level(logging.WARNING, logger="saekit"):
        assert warn_about_weight(make(sk.Relu(l1=5.0))) is None
        assert warn_about_weight(make(sk.Relu(l1=0.0))) is None
        assert warn_about_weight(make(sk.Relu(l1=1e-4), target_l0=4.0)) is None
        assert warn_about_weight(make(sk.TopK(k=4))) is None
    assert caplog.text == ""
    message = warn_about_weight(make(sk.Relu(l1=8e-3)))
    assert "Relu.l1=0.008 is small" in message
    assert f"{8e-3 * D_IN:.3g} if it was meant for errors averaged over features" in message
    large = warn_about_weight(make(sk.Relu(l1=40.0), x=100 * rows()))
    assert "is large" in large
    assert "if it was meant for raw activations" in large
    assert "JumpRelu.weight=0.001 is small" in warn_about_weight(make(sk.JumpRelu(weight=1e-3)))
    with caplog.at_level(logging.WARNING, logger="saekit"):
        fit([make(sk.Relu(l1=1e-3))], [rows()], FitConfig(progress=False))
    assert "Relu.l1=0.001 is small" in caplog.text


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    recipe = get_recipe(name)
    settings = recipe.settings(D_IN, 600, 2048, mean_squared_norm=48.0)
    assert recipe.source
    assert recipe.differs
    sae = sk.SparseAutoencoder(settings.autoencoder)
    x = rows(2048)
    sae.set_input_moments_(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    result = fit([sae], x.split(256), settings.fit.__class__(**{**vars(settings.fit), "progress": False}))
    assert all(math.isfinite(value) for value in result.final[0].values())


def test_recipes_are_those_that_were_published():
    april = get_recipe("anthropic_april").settings(768, 24576, 10**6)
    assert april.autoencoder.sparsity == sk.Relu(l1=5.0)
    assert (april.autoencoder.decoder_norm, april.autoencoder.decoder_init_norm) == ("free", 0.1)
    assert (april.fit.lr, april.fit.lr_decay_fraction, april.fit.sparsity_warmup_fraction) == (5e-5, 0.2, 0.05)
    scope = get_recipe("gemma_scope_jumprelu").settings(768, 24576, 10**6)
    assert scope.autoencoder.sparsity.weight == pytest.approx(5e-4 * 768)
    assert scope.autoencoder.sparsity.bandwidth == pytest.approx(0.001 * 768**0.5)
    assert scope.autoencoder.sparsity.threshold_lr == pytest.approx(768**0.5)
    assert scope.fit.betas == (0.0, 0.999)
    assert get_recipe("saev_clip").settings(768, 24576, 10**6).autoencoder.sparsity.l1 == pytest.approx(0.6144)
    raw = get_recipe("cunningham_l1")
    assert raw.is_raw
    assert raw.settings(512, 1024, 10**6, 512.0).autoencoder.sparsity.l1 == pytest.approx(512 * 8.577e-4)
    with pytest.raises(sk.ConfigError, match="mean_squared_norm"):
        raw.settings(512, 1024, 10**6)
    monosemanticity = get_recipe("towards_monosemanticity").settings(768, 24576, 16_000)
    assert monosemanticity.fit.resample_at == (0.125, 0.25, 0.375, 0.5)
    assert monosemanticity.autoencoder.dead_after_tokens == 1000
    with pytest.raises(sk.ConfigError, match="No recipe 'gao_top'. Closest: 'gao_topk'"):
        get_recipe("gao_top")


def test_resampled_latents_point_at_badly_reconstructed_rows_and_the_optimizer_forgets_them():
    x = rows()
    odd = x.mean(0) + torch.nn.functional.one_hot(torch.tensor([3]), D_IN) * 200.0
    x = torch.cat([x, odd])
    sae = make(sk.JumpRelu(threshold=0.2), x=x, dead_after_tokens=1000, decoder_norm="free", decoder_init_norm=2.0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    sae.training_loss(x).total.backward()
    optimizer.step()
    sae.tokens_since_fired.zero_()
    sae.tokens_since_fired[5] = 10_000
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    resampler = DeadResampler(sae, n_tokens=10 * len(x), shares=(0.1,), window=len(x))
    resampler.after_step_(0, x, sae(x).detach() * (x[:, :1] < 0).logical_not(), optimizer)
    assert not sae.is_dead.any()
    direction = (x - sae.input_mean) @ sae.W_dec[5].detach()
    assert int(direction.argmax()) == len(x) - 1
    alive = torch.arange(D_SAE) != 5
    after = sae.state_dict()
    for name in ("W_dec", "W_enc_T", "b_enc", "sparsifier.threshold"):
        assert torch.equal(after[name][alive], before[name][alive]), name
    for name, share in (("W_dec", 1.0), ("W_enc_T", 0.2)):
        expected = share * before[name][alive].norm(dim=1).mean()
        assert float(after[name][5].norm()) == pytest.approx(float(expected), rel=1e-5)
    assert float(after["b_enc"][5]) == 0
    assert float(after["sparsifier.threshold"][5]) == pytest.approx(0.2)
    for parameter in sae.latent_parameters():
        for value in (optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"]):
            assert not value[5].any()
            assert value[alive].any()
    assert optimizer.state[sae.b_dec]["exp_avg"].any()


def test_rows_are_drawn_in_proportion_to_their_squared_loss():
    x = rows(64)
    sae = make(x=x)
    counts = torch.zeros(64)
    losses = torch.arange(64) / 64
    for i in range(400):
        resampler = DeadResampler(sae, n_tokens=10**9, shares=(0.5,), window=10**9)
        resampler.after_step_(i, x, x - losses[:, None].sqrt() / D_IN**0.5, torch.optim.Adam(sae.parameters()))
        counts[(x - resampler.state("r")["r.rows"][0]).abs().sum(1).argmin()] += 1
    expected = losses.square() / losses.square().sum() * 400
    assert float((counts[32:] - expected[32:]).abs().mean()) < 3.5
    assert counts[:16].sum() < 20


def test_fit_resamples_at_its_moments_and_brings_latents_back(caplog):
    x = rows(4096)

    def train(resample_at: tuple[float, ...]) -> sk.SparseAutoencoder:
        sae = make(sk.Relu(l1=0.5), x=x, dead_after_tokens=600)
        with torch.no_grad():
            sae.b_enc[:20] = -50.0
        fit([sae], x.split(64), FitConfig(lr=1e-3, progress=False, resample_at=resample_at))
        return sae

    assert float(train(()).is_dead.float().mean()) > 0.4
    with caplog.at_level(logging.INFO, logger="saekit"):
        after = float(train((0.3, 0.6)).is_dead.float().mean())
    assert after < 0.15
    assert "dead latents after 1280 tokens" in caplog.text
    assert "dead latents after 2496 tokens" in caplog.text


def test_health_names_what_is_wrong():
    x = rows(2000)
    x[7] *= 300
    sae = make(sk.TopK(k=4), x=rows(2000))
    with torch.no_grad():
        sae.b_enc[:24] = -100.0
        sae.b_enc[30] = 100.0
    health = measure_health(sae, x.split(300))
    assert health.n_tokens == 2000
    assert health.silent > 0.4
    assert health.very_dense >= 1 / D_SAE
    assert health.high_norm == pytest.approx(1 / 2000)
    assert health.high_norm_energy > 0.9
    expected = x.double().mean(0).norm() / (x - x.double().mean(0)).square().sum(1).mean().sqrt()
    assert health.mean_over_std == pytest.approx(float(expected), rel=1e-4)
    error = (x - sae(x).detach()).square().sum() / (x - x.mean(0)).square().sum()
    assert health.fvu == pytest.approx(float(error), rel=1e-3)
    assert health.decoder_norms == pytest.approx((1, 1, 1))
    text, page = str(health), health._repr_html_()
    assert "Look: 0.050% of tokens have norms above 10 times the median" in text
    assert "latents fired on no token" in page
    assert json.loads(json.dumps(health.to_json()))["warnings"] == health.warnings
    with pytest.raises(sk.InputError, match="no rows"):
        measure_health(sae, [])


def test_health_of_what_is_well_has_no_warnings():
    sick = measure_health(make(sk.TopK(k=4)), [rows()])
    well = dataclasses.replace(
        sick, fvu=0.2, silent=0.0, very_dense=0.01, norm_ratio=0.95, high_norm=0.0, high_norm_energy=0.0
    )
    assert well.warnings == []
    assert "Look" not in str(well)
    assert dataclasses.replace(well, fvu=float("nan")).warnings == ["FVU is nan: worse than the mean activation."]


def test_thresholds_are_trained_at_a_rate_of_their_own():
    x = rows(64)
    for threshold_lr in (1.0, 10.0):
        sae = make(sk.JumpRelu(threshold=0.5, bandwidth=2.0, threshold_lr=threshold_lr), x=x)
        before = sae.b_enc.detach().clone()
        fit([sae], [x], FitConfig(lr=1e-3, lr_warmup_fraction=0.0, lr_decay_fraction=0.0, progress=False))
        moved = (sae.sparsifier.threshold.detach() - 0.5).abs().median()
        assert float(moved) == pytest.approx(1e-3 * threshold_lr, rel=1e-2)
        assert float((sae.b_enc.detach() - before).abs().median()) == pytest.approx(1e-3, rel=1e-2)


def test_forgetting_no_latent_changes_nothing():
    sae = make()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    sae.training_loss(rows()).total.backward()
    optimizer.step()
    before = optimizer.state[sae.W_dec]["exp_avg"].clone()
    forget_latents_(sae, optimizer, torch.zeros(D_SAE, dtype=torch.bool))
    assert torch.equal(optimizer.state[sae.W_dec]["exp_avg"], before)
