"""Deep autoencoders: any pair of modules, any width; stacks, greedy pretraining, unrolling."""

import copy

import pytest
import torch
from torch import nn

import saekit as sk
from saekit.autoencoders import DOCUMENTS_2, IMAGES_30
from saekit.autoencoders.denoising import DenoisingAutoencoder
from saekit.autoencoders.modules import linear_layers, seeded

QUICK = sk.FitConfig(lr=0.01, progress=False)


def rows(n: int = 64, d_in: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d_in, generator=torch.Generator().manual_seed(seed))


def deep(**settings) -> sk.DeepAutoencoder:
    return sk.DeepAutoencoder(sk.DeepAutoencoderConfig(**{"d_in": 6, "d_latent": 3} | settings))


def test_one_sigmoid_layer_is_the_four_parameter_formula():
    model = deep(network=sk.Mlp(hidden=()), code="sigmoid", likelihood=sk.SquaredError(link="sigmoid"))
    (up,), (down,) = linear_layers(model.encoder), linear_layers(model.decoder)
    x = rows()
    h = torch.sigmoid(x @ up.weight.T + up.bias)
    x_hat = torch.sigmoid(h @ down.weight.T + down.bias)
    torch.testing.assert_close(model(x), x_hat)
    torch.testing.assert_close(model.training_loss(x).total, (x - x_hat).square().sum(1).mean())


def test_the_loss_is_the_mean_of_the_examples_losses():
    model, x = deep(likelihood=sk.Bernoulli()), rows()
    by_hand = sum(model.nll(row[None]) for row in x) / len(x)
    torch.testing.assert_close(model.training_loss(x).total, by_hand[0])


@pytest.mark.parametrize("d_latent", [2, 6, 9])
def test_codes_narrower_as_wide_and_wider_all_train(d_latent):
    model, x = deep(d_latent=d_latent, network=sk.Mlp(hidden=(16,))), rows()
    before = float(model.nll(x).mean().detach())
    sk.fit([model], sk.ShuffledRows(x, 32, n_epochs=30), QUICK)
    assert model.encode(x).shape == (64, d_latent)
    assert float(model.nll(x).mean().detach()) < 0.9 * before


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 5), (1, 1), (9, 16)])
def test_a_convolutional_pair_gives_back_any_size(height, width):
    network = sk.Convolutional(image=(2, height, width), channels=(3, 4, 5), hidden=(8,))
    model = deep(d_in=2 * height * width, network=network)
    x = rows(3, 2 * height * width)
    assert model(x).shape == x.shape
    assert model.encode(x).shape == (3, 3)
    assert model.describe().endswith("-8-3-8-" + str(model.encoder[-3].in_features) + "-4c-3c-2c")


def test_a_convolution_that_does_not_fit_the_rows_is_named():
    with pytest.raises(sk.ConfigError, match=r"image=\(1, 28, 28\) holds 784 values, but d_in=6"):
        deep(network=sk.Convolutional(image=(1, 28, 28)))


def test_set_data_mean_reconstructs_the_mean_from_nothing():
    x = rows()
    for network in (sk.Mlp(), sk.Mlp(tied=True), sk.Convolutional(image=(6, 1, 1), channels=(2,))):
        model = deep(network=network, likelihood=sk.Bernoulli())
        model.set_data_mean_(x.mean(0))
        with torch.no_grad():
            for parameter in list(model.decoder.parameters())[:-1]:
                parameter.zero_()
            if isinstance(network, sk.Mlp) and network.tied:
                for layer in linear_layers(model.encoder):
                    layer.weight.zero_()
        torch.testing.assert_close(model(x)[0], x.mean(0))


def test_the_initial_weights_carry_the_signal_through_many_layers():
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    model = deep(d_in=64, d_latent=64, network=sk.Mlp(hidden=(256,) * 8, activation="relu"))
    assert 0.2 < float(model.encode(x).detach().std()) < 3


def test_tied_weights_are_saved_once_and_stay_tied_in_training(tmp_path):
    model = deep(network=sk.Mlp(hidden=(5,), tied=True))
    assert sum(p.numel() for p in model.parameters()) == 6 * 5 + 5 * 3 + (5 + 3) + (5 + 6)
    sk.fit([model], [rows()], QUICK)
    loaded = sk.load_autoencoder(model.save(tmp_path / "tied"))
    clone = copy.deepcopy(model).double()
    for each in (model, loaded, clone):
        up, down = linear_layers(each.encoder), linear_layers(each.decoder)
        assert torch.equal(up[0].weight, down[-1].weight.T)
    assert torch.equal(loaded(rows()), model(rows()))


def pair_of_modules() -> dict[str, nn.Module]:
    return {"encoder": nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)), "decoder": nn.Linear(3, 6)}


def test_any_pair_of_modules_is_saved_and_must_be_given_again(tmp_path):
    model = sk.DeepAutoencoder(
        sk.DeepAutoencoderConfig(d_in=6, d_latent=3, network=sk.Custom(encoder="linear and norm")), **pair_of_modules()
    )
    sk.fit([model], [rows()], QUICK)
    path = model.save(tmp_path / "custom")
    with pytest.raises(sk.CheckpointError, match=r"needs the modules themselves.*load_autoencoder.*linear and norm"):
        sk.load_autoencoder(path)
    loaded = sk.DeepAutoencoder.load(path, **pair_of_modules())
    assert torch.equal(loaded(rows()), model(rows()))
    with pytest.raises(sk.CheckpointError, match=r"encoder.0.weight has shape \[3, 6\], expected \[3, 7\]"):
        sk.load_autoencoder(path, encoder=nn.Sequential(nn.Linear(7, 3), nn.LayerNorm(3)), decoder=nn.Linear(3, 6))


def test_modules_that_do_not_fit_are_named():
    custom = sk.DeepAutoencoderConfig(d_in=6, d_latent=3, network=sk.Custom())
    with pytest.raises(sk.ConfigError, match="come as a pair"):
        sk.DeepAutoencoder(custom, encoder=nn.Linear(6, 3))
    with pytest.raises(sk.ConfigError, match=r"config asks for Mlp.*network=Custom\(\)"):
        sk.DeepAutoencoder(sk.DeepAutoencoderConfig(d_in=6, d_latent=3), **pair_of_modules())
    model = sk.DeepAutoencoder(custom, encoder=nn.Linear(6, 4), decoder=nn.Linear(3, 6))
    with pytest.raises(sk.ConfigError, match=r"encoder puts out \[64, 4\]; it must be \[64, 3\]"):
        model.encode(rows())
    model = sk.DeepAutoencoder(custom, encoder=nn.Linear(6, 3), decoder=nn.Linear(3, 5))
    with pytest.raises(sk.ConfigError, match=r"decoder puts out \[64, 5\]"):
        model(rows())


def test_rows_of_another_width_and_images_are_told_what_to_do():
    with pytest.raises(sk.InputError, match=r"x has shape \[3, 7\].*d_in=6"):
        deep().encode(torch.zeros(3, 7))


def test_data_out_of_range_is_refused_in_training_never_squashed():
    model = deep(likelihood=sk.Bernoulli())
    with pytest.raises(sk.InputError, match=r"is 3; Bernoulli takes values in \[0, 1\]"):
        sk.fit([model], [torch.full((4, 6), 3.0)], QUICK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_latent": 0}, "d_latent=0; sizes are 1 or larger"),
        ({"d_in": 0, "d_latent": -1}, "d_in=0, d_latent=-1"),
        ({"code_noise": -0.5}, "code_noise=-0.5"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(sk.ConfigError, match=message):
        deep(**settings)


def test_a_checkpoint_of_another_class_or_schema_is_refused(tmp_path):
    path = deep().save(tmp_path / "deep")
    with pytest.raises(sk.CheckpointError, match="holds a DeepAutoencoder, not a LinearAutoencoder"):
        sk.LinearAutoencoder.load(path)
    meta = path / "meta.json"
    meta.write_text(meta.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(sk.CheckpointError, match="schema 7"):
        sk.load_autoencoder(path)


def test_code_noise_is_there_in_training_only():
    model, x = deep(code_noise=1.0), rows()
    assert not torch.equal(model.training_loss(x).x_hat, model.training_loss(x).x_hat)
    model.eval()
    assert torch.equal(model.training_loss(x).x_hat, model(x))


def test_too_much_capacity_memorises():
    generator = torch.Generator().manual_seed(0)
    x, others = torch.randn(2, 12, 4, generator=generator)
    model = deep(d_in=4, d_latent=1, network=sk.Mlp(hidden=(64, 64)), seed=1)
    sk.fit([model], [x], sk.FitConfig(lr=0.01, progress=False), n_tokens=12 * 400)
    variance = float((others - x.mean(0)).square().sum(1).mean())
    assert float(model.nll(x).mean().detach()) < 0.1 * variance
    assert float(model.nll(others).mean().detach()) > 0.7 * variance


# Stacks


def stacks() -> list[tuple[str, list[sk.Autoencoder]]]:
    widths = (6, 5, 4, 2)
    return [
        ("rbm", list(sk.rbm_stack(widths))),
        ("rbm-gaussian-visible", list(sk.rbm_stack(widths, visible="gaussian", code="binary"))),
        ("plain", list(sk.autoencoder_stack(widths))),
        ("plain-relu", list(sk.autoencoder_stack(widths, activation="relu", likelihood=sk.SquaredError()))),
        ("denoising", list(sk.autoencoder_stack(widths, DenoisingAutoencoder))),
    ]


every_stack = pytest.mark.parametrize("name", [name for name, _ in stacks()])


@every_stack
def test_pretraining_leaves_lower_blocks_alone_and_unrolls_into_the_same_pass(name):
    stack = dict(stacks())[name]
    x = rows()
    frozen: list[dict[str, torch.Tensor]] = []
    for n_blocks in (1, 2, 3):
        again = dict(stacks())[name]
        with seeded(0):
            sk.pretrain(again[:n_blocks], x, n_epochs=2, batch_size=16, config=QUICK)
        for before, block in zip(frozen, again, strict=False):
            assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())
        frozen = [{k: v.clone() for k, v in block.state_dict().items()} for block in again[:n_blocks]]
        stack = again
    model = sk.unroll(stack)
    assert model.describe() == "6-5-4-2-4-5-6"
    codes = x
    for block in stack:
        codes = block.eval().encode(codes)
    x_hat = codes
    for block in reversed(stack):
        x_hat = block.decode(x_hat)
    torch.testing.assert_close(model.encode(x), codes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(x), x_hat, rtol=1e-6, atol=1e-6)


def test_an_unrolled_stack_improves_and_its_weights_drift_apart_unless_tied():
    x = rows(200)
    stack = sk.rbm_stack((6, 8, 3))
    sk.pretrain(stack, x, n_epochs=3, config=QUICK)
    for tied in (False, True):
        model = sk.unroll(stack, tied=tied)
        before = float(model.nll(x).mean().detach())
        assert torch.equal(linear_layers(model.encoder)[0].weight, linear_layers(model.decoder)[-1].weight.T)
        sk.fit([model], sk.ShuffledRows(x, 50, n_epochs=20), QUICK)
        assert float(model.nll(x).mean().detach()) < before
        same = torch.equal(linear_layers(model.encoder)[0].weight, linear_layers(model.decoder)[-1].weight.T)
        assert same is tied


def test_the_presets_have_the_published_sizes():
    model = sk.unroll(sk.rbm_stack(IMAGES_30))
    assert model.describe() == "784-1000-500-250-30-250-500-1000-784"
    assert sum(p.numel() for p in model.parameters()) == 2_837_314
    assert sk.unroll(sk.rbm_stack(DOCUMENTS_2)).describe() == "2000-500-250-125-2-125-250-500-2000"


def test_a_killed_pretraining_goes_on(tmp_path):
    x = rows()
    stack = sk.rbm_stack((6, 4, 2))
    with seeded(0):
        sk.pretrain(stack[:1], x, n_epochs=2, config=QUICK, out=tmp_path)
    resumed, whole = sk.rbm_stack((6, 4, 2)), sk.rbm_stack((6, 4, 2))
    results = sk.pretrain(resumed, x, n_epochs=2, config=QUICK, out=tmp_path)
    assert [result.was_finished for result in results] == [True, False]
    assert torch.equal(resumed[0].W, stack[0].W)
    with seeded(0):
        sk.pretrain(whole, x, n_epochs=2, config=[QUICK, QUICK])
    assert torch.equal(whole[0].W, stack[0].W)


def test_blocks_that_do_not_fit_are_all_named():
    stack = [sk.rbm_stack((6, 5))[0], *sk.autoencoder_stack((4, 3, 2), activation="relu")]
    with pytest.raises(sk.ConfigError, match=r"block 0 has 5 latents, block 1 takes 4.*block 1 reconstructs by 'sigm"):
        sk.unroll(stack)
    with pytest.raises(sk.ConfigError, match="Block 0 is DeepAutoencoder.*one layer up and one down"):
        sk.unroll([deep()])
    with pytest.raises(sk.ConfigError, match="decoders of their own"):
        sk.unroll(sk.autoencoder_stack((6, 4, 2)), tied=True)
    with pytest.raises(sk.ConfigError, match="given no blocks"):
        sk.unroll([])
    with pytest.raises(sk.ConfigError, match=r"2 configs for a stack of 1"):
        sk.pretrain(sk.rbm_stack((6, 2)), rows(), n_epochs=1, config=[QUICK, QUICK])
    with pytest.raises(sk.ConfigError, match=r"widths=\(6,\)"):
        sk.rbm_stack((6,))


# Batches of a tensor


def test_shuffled_rows_visit_every_row_once_an_epoch_in_a_new_order_each_time():
    x = torch.arange(10.0)[:, None]
    batches = list(zip(range(8), sk.ShuffledRows(x, 3, n_epochs=2), strict=False))
    epochs = [torch.cat([batch for i, batch in batches if i // 4 == epoch]).flatten() for epoch in (0, 1)]
    assert all(torch.equal(epoch.sort().values, x.flatten()) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert sk.ShuffledRows(x, 3, n_epochs=2.5).n_tokens == 25


def test_shuffled_rows_go_on_where_they_were():
    x = torch.arange(10.0)[:, None]
    source = sk.ShuffledRows(x, 3, n_epochs=3)
    stream = iter(source)
    seen = [next(stream) for _ in range(5)]
    again = sk.ShuffledRows(x, 3, n_epochs=3)
    again.load_state_dict(source.state_dict())
    assert torch.equal(next(iter(again)), next(stream))
    assert len(seen) == 5


def test_no_rows_are_an_error():
    with pytest.raises(sk.ConfigError, match="ShuffledRows of 0 rows"):
        sk.ShuffledRows(torch.zeros(0, 3), 4)
