"""The denoising autoencoder: its corruptions, its losses, the score it learns, stacks of it."""

import math

import pytest
import torch

import saekit as sk
from saekit.autoencoders import DenoisingAutoencoder, DenoisingAutoencoderConfig, autoencoder_stack, unroll
from saekit.errors import ConfigError, InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes: object) -> DenoisingAutoencoder:
    settings = {"d_in": 6, "d_latent": 4, "network": sk.Mlp(hidden=(8,)), **changes}
    return DenoisingAutoencoder(DenoisingAutoencoderConfig(**settings))  # type: ignore[arg-type]


class Identity(torch.nn.Module):
    """A pair of these makes the network that copies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def copying(**changes: object) -> DenoisingAutoencoder:
    settings = {"d_in": 6, "d_latent": 6, "network": sk.Custom(), "code": "identity", **changes}
    return DenoisingAutoencoder(DenoisingAutoencoderConfig(**settings), encoder=Identity(), decoder=Identity())  # type: ignore[arg-type]


def within_four_sigma(n_hits: float, n: int, probability: float) -> bool:
    return abs(n_hits / n - probability) < 4 * math.sqrt(probability * (1 - probability) / n)


def test_gaussian_noise_has_its_mean_and_variance():
    x = torch.full((1000, 200), 3.0)
    noise = (sk.GaussianNoise(sigma=0.5)(x, generator()).x - x) / 0.5
    assert abs(noise.mean().item()) < 4 / math.sqrt(x.numel())
    assert abs(noise.var().item() - 1) < 4 * math.sqrt(2 / x.numel())


def test_masking_zeroes_its_share_and_rescales_nothing():
    x = torch.rand(1000, 200, generator=generator(1)) + 1
    corrupted = sk.Masking(share=0.3)(x, generator())
    assert within_four_sigma(corrupted.is_corrupted.sum().item(), x.numel(), 0.3)
    assert torch.equal(corrupted.x == 0, corrupted.is_corrupted)
    assert torch.equal(corrupted.x[~corrupted.is_corrupted], x[~corrupted.is_corrupted])  # no 1 / (1 - share)


def test_salt_and_pepper_are_half_of_the_share_each_and_use_the_datas_range():
    x = torch.zeros(1000, 200)
    corrupted = sk.SaltAndPepper(share=0.4, low=-1.0, high=2.0)(x, generator())
    assert within_four_sigma((corrupted.x == -1).sum().item(), x.numel(), 0.2)
    assert within_four_sigma((corrupted.x == 2).sum().item(), x.numel(), 0.2)
    assert torch.equal(corrupted.x[~corrupted.is_corrupted], x[~corrupted.is_corrupted])


@pytest.mark.parametrize("corruption", [sk.GaussianNoise(), sk.Masking(), sk.SaltAndPepper()])
def test_a_generator_makes_a_corruption_again_and_eval_mode_makes_none(corruption):
    x = torch.rand(5, 6, generator=generator(1))
    assert torch.equal(corruption(x, generator(2)).x, corruption(x, generator(2)).x)
    assert not torch.equal(corruption(x, generator(2)).x, corruption(x, generator(3)).x)
    model = small(corruption=corruption)
    assert not torch.equal(model.corrupt(x).x, x)
    assert torch.equal(model.encode(x), model.encode(x))  # also while training
    model.eval()
    assert torch.equal(model.corrupt(x).x, x)
    assert not model.corrupt(x).is_corrupted.any()


def test_the_target_is_the_clean_row_so_that_copying_costs_the_noise():
    x = torch.rand(20_000, 6, generator=generator())
    loss = copying(corruption=sk.GaussianNoise(sigma=0.2)).training_loss(x).total.item()
    assert loss == pytest.approx(6 * 0.2**2, rel=0.03)


def test_cross_entropy_is_torchs_on_logits_and_at_best_the_datas_entropy():
    x = torch.rand(50, 6, generator=generator())
    model = small(likelihood=sk.Bernoulli()).eval()
    logits = model.output(model.encode(x))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
    torch.testing.assert_close(model.training_loss(x).total, expected)
    perfect = model.likelihood.nll(x.logit(), x).mean()
    torch.testing.assert_close(perfect, -(x * x.log() + (1 - x) * (1 - x).log()).sum(1).mean())


def test_emphasis_weighs_corrupted_and_clean_entries():
    x = torch.rand(40, 6, generator=generator())
    model = small(corruption=sk.Masking(share=0.5), emphasis=(1.0, 0.25), likelihood=sk.Gaussian(sigma=0.5))
    torch.manual_seed(5)
    found = model.training_loss(x)
    torch.manual_seed(5)
    is_corrupted = model.corrupt(x).is_corrupted
    each = 0.5 * math.log(2 * math.pi * 0.25) + (x - found.x_hat).square() / 0.5
    torch.testing.assert_close(found.total, (each * torch.where(is_corrupted, 1.0, 0.25)).sum(1).mean())


def test_full_emphasis_ignores_clean_entries():
    x = torch.rand(40, 6, generator=generator())
    model = small(corruption=sk.Masking(share=0.5), emphasis=(1.0, 0.0))
    torch.manual_seed(5)
    found = model.training_loss(x)
    torch.manual_seed(5)
    is_corrupted = model.corrupt(x).is_corrupted
    expected = ((x - found.x_hat).square() * is_corrupted).sum(1).mean()
    torch.testing.assert_close(found.total, expected)
    plain = small(corruption=sk.Masking(share=0.5))
    torch.manual_seed(5)
    assert plain.training_loss(x).total > found.total


def test_on_gaussian_data_the_best_denoiser_is_wieners_and_its_score_that_of_the_noisy_density():
    """x ~ N(0, s^2 I): E[x | x~] = x~ s^2 / (s^2 + sigma^2), and grad log p_sigma(x~) = -x~ / (s^2 + sigma^2)."""
    sigma, s = 0.5, 1.5
    model = copying(corruption=sk.GaussianNoise(sigma=sigma))
    x = s * torch.randn(20_000, 6, generator=generator())
    sk.fit([model], x.split(500), sk.FitConfig(lr=0.02, lr_decay_fraction=0.8, progress=False), n_tokens=60_000)
    y = torch.randn(10, 6, generator=generator(1))
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(y), y * s**2 / (s**2 + sigma**2), rtol=0.02, atol=0)
        torch.testing.assert_close(model.score(y), -y / (s**2 + sigma**2), rtol=0.15, atol=0)
        torch.testing.assert_close(model.vector_field(y), model(y) - y)
        torch.testing.assert_close(model.denoise(y, n_steps=3), model(model(model(y))))


def test_on_a_ring_it_points_to_where_the_bessel_functions_say():
    """E[x | x~] is on the ray of x~, at radius I1(r / sigma^2) / I0(r / sigma^2), inside the ring."""
    sigma = 0.3
    turn = torch.rand(20_000, generator=generator()) * 2 * math.pi
    ring = torch.stack([turn.cos(), turn.sin()], 1)
    r = torch.tensor([0.8, 1.0, 1.2]).double()
    exact = torch.special.i1e(r / sigma**2) / torch.special.i0e(r / sigma**2)
    # The formula is the posterior mean: every point of the ring weighed by the noise that would take it to (r, 0).
    weights = (
        -(ring.double()[None] - r[:, None, None] * torch.tensor([1.0, 0.0])).square().sum(-1) / 2 / sigma**2
    ).exp()
    by_weights = (weights[..., None] * ring).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(by_weights[:, 0], exact, rtol=0, atol=0.01)
    assert exact[1] < 1

    torch.manual_seed(0)
    model = DenoisingAutoencoder(
        DenoisingAutoencoderConfig(
            d_in=2, d_latent=32, network=sk.Mlp(hidden=(32,)), corruption=sk.GaussianNoise(sigma=sigma)
        )
    )
    config = sk.FitConfig(lr=0.01, lr_decay_fraction=0.8, progress=False)
    sk.fit([model], sk.ShuffledRows(ring, 250, n_epochs=6.0), config)
    turn = torch.linspace(0, 2 * math.pi, 50)[:-1]
    outwards = torch.stack([turn.cos(), turn.sin()], 1)
    with torch.no_grad():
        for radius, there in zip(r.float(), exact, strict=True):
            found = model.denoise(radius * outwards)
            assert ((found * outwards).sum(1) - there).abs().max() < 0.07
            torch.testing.assert_close((found * outwards).sum(1).mean().double(), there, rtol=0, atol=0.03)


def test_a_score_needs_gaussian_noise():
    with pytest.raises(ConfigError, match="needs corruption=GaussianNoise.*Masking"):
        small(corruption=sk.Masking()).score(torch.zeros(1, 6))


def test_resumed_noise_is_the_noise_it_would_have_been(tmp_path):
    x = torch.rand(400, 6, generator=generator())
    config = sk.FitConfig(progress=False, save_every=3)

    class Killed(Exception):
        pass

    def run(out, kill_after=None):
        torch.manual_seed(1)
        model = small(corruption=sk.SaltAndPepper())
        if kill_after is not None:
            loss, count = model.training_loss, iter(range(100))

            def dying(x):
                if next(count) == kill_after:
                    raise Killed
                return loss(x)

            model.training_loss = dying
        sk.fit([model], sk.ShuffledRows(x, 50, n_epochs=2.0), config, out=out)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_after=7)
    torch.manual_seed(99)  # as another process would have
    resumed = small(corruption=sk.SaltAndPepper())
    sk.fit([resumed], sk.ShuffledRows(x, 50, n_epochs=2.0), config, out=tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_stack_of_them_pretrains_and_unrolls():
    x = torch.rand(200, 12, generator=generator())
    stack = autoencoder_stack((12, 8, 3), DenoisingAutoencoder, corruption=sk.Masking(share=0.2))
    sk.pretrain(stack, x, n_epochs=2.0, batch_size=20, config=sk.FitConfig(progress=False))
    deep = unroll(stack)
    torch.testing.assert_close(deep.encode(x), stack[1].encode(stack[0].encode(x)))
    torch.testing.assert_close(deep(x), stack[0].decode(stack[1].decode(deep.encode(x))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sk.GaussianNoise(sigma=0.0), "GaussianNoise.sigma=0.0"),
        (lambda: sk.Masking(share=1.0), "Masking.share=1.0; it is a probability above 0 and below 1"),
        (lambda: sk.SaltAndPepper(low=1.0, high=0.0), "low=1.0 is not below high=0.0"),
        (lambda: small(d_latent=0), "d_latent=0"),
        (lambda: small(emphasis=(0.0, 0.0)), r"emphasis=\(0.0, 0.0\)"),
        (lambda: small(emphasis=(1.0, 0.0), likelihood=sk.Multinomial()), "Multinomial.*leave it at"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_data_outside_the_likelihoods_range_is_named():
    with pytest.raises(InputError, match=r"x\[0, 0\] is 2; Bernoulli takes values in \[0, 1\]"):
        small(likelihood=sk.Bernoulli()).training_loss(torch.tensor([[2.0, 0, 0, 0, 0, 0]]))
