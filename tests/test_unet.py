"""The U-Net: sizes, skips, tiles, its losses, and what it is not."""

import pytest
import torch

import saekit as sk
from saekit.autoencoders import UNet, UNetConfig, iou
from saekit.errors import CheckpointError, ConfigError, InputError


def small(**changes: object) -> UNet:
    return UNet(UNetConfig(**{"widths": (4, 8, 8), **changes})).double()  # type: ignore[arg-type]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 16), (17, 8)])
@pytest.mark.parametrize("skips", [True, False])
def test_any_size_goes_in_and_comes_out(size, skips):
    assert small(skips=skips, out_channels=3)(noise(2, 1, *size)).shape == (2, 3, *size)


def test_the_maps_are_those_of_every_level_and_the_last_is_the_output():
    model, x = small(), noise(1, 1, 16, 12)
    maps = model.maps(x)
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "down.0": (4, 16, 12),
        "down.1": (8, 8, 6),
        "down.2": (8, 4, 3),
        "up.1": (8, 8, 6),
        "up.0": (4, 16, 12),
        "output": (1, 16, 12),
    }
    assert torch.equal(maps["output"], model(x))


def test_an_output_pixel_depends_on_nothing_beyond_the_reach():
    model, x = small(norm="none"), noise(1, 1, 80, 80)
    changed = x.clone()
    changed[..., 40, 40] += 3
    moved = (model(changed) - model(x))[0, 0].abs() > 0
    far = (moved.nonzero() - 40).abs().max()
    assert 20 < far <= model.reach


def test_tiles_make_the_whole_image_without_a_norm():
    model, x = small(norm="none"), noise(1, 1, 61, 46)
    torch.testing.assert_close(model.tiled(x, tile=20), model(x), rtol=0, atol=1e-12)
    with_norm = small(norm="group")
    assert (with_norm.tiled(x, tile=20) - with_norm(x)).abs().max() > 1e-3  # as the docstring warns


def test_with_skips_it_copies_noise_and_without_it_cannot():
    """Why it is not an autoencoder: nothing has to pass through its lowest level."""
    errors = {}
    x = noise(8, 1, 16, 16).float()
    for skips in (True, False):
        model = UNet(UNetConfig(widths=(8, 8, 4), skips=skips, target="values"))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss = model.training_loss(x, x)
            loss.backward()
            optimizer.step()
        errors[skips] = loss.item() / float(x.square().sum((1, 2, 3)).mean())
    assert errors[True] < 0.1
    assert errors[False] > 0.5


def test_losses_are_what_they_say():
    model, x = small(), noise(2, 1, 8, 8)
    masks = (noise(2, 1, 8, 8) > 0).double()
    p = model(x).sigmoid()
    entropy = -(masks * p.log() + (1 - masks) * (1 - p).log()).mean()
    dice = (2 * (masks * p).sum((1, 2, 3)) + 1) / (masks.sum((1, 2, 3)) + p.sum((1, 2, 3)) + 1)
    torch.testing.assert_close(model.training_loss(x, masks), entropy + (1 - dice).mean())

    model = small(target="classes", out_channels=3)
    classes = torch.arange(128).reshape(2, 8, 8) % 3
    chosen = model(x).log_softmax(1).gather(1, classes[:, None])
    torch.testing.assert_close(model.training_loss(x, classes), -chosen.mean())

    model = small(target="values")
    torch.testing.assert_close(model.training_loss(x, masks), (model(x) - masks).square().sum() / 2)


def test_iou_by_hand():
    a = torch.zeros(2, 1, 4, 4)
    b = a.clone()
    a[0, 0, :2], b[0, 0, 1:3] = 1, 1
    assert iou(a, b).flatten().tolist() == [pytest.approx(1 / 3), 1.0]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = UNet(UNetConfig(widths=(4, 8), skips=False, seed=5))
    loaded = UNet.load(model.save(tmp_path / "unet", {"data": "ellipses"}))
    assert loaded.config == model.config
    assert loaded.provenance == {"data": "ellipses"}
    x = torch.randn(1, 1, 9, 9)
    assert torch.equal(loaded(x), model(x))
    sparse = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=4, d_sae=64))
    with pytest.raises(CheckpointError, match="holds an 'Autoencoder', not an? 'UNet'"):
        UNet.load(sparse.save(tmp_path / "sae"))
    with pytest.raises(CheckpointError, match="holds an? 'UNet', not an 'Autoencoder'"):
        sk.load_autoencoder(tmp_path / "unet")
    meta = tmp_path / "unet" / "meta.json"
    meta.write_text(meta.read_text().replace('"skips"', '"leaps"'))
    with pytest.raises(CheckpointError, match="makes no UNet: UNetConfig: unknown fields .'leaps'"):
        UNet.load(tmp_path / "unet")


def test_making_one_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    small()
    assert torch.equal(before, torch.get_rng_state())


def test_bfloat16_changes_the_loss_by_less_than_two_percent():
    model, x = small().float(), noise(4, 1, 12, 12).float()
    masks = (x > 0).float()
    exact = model.training_loss(x, masks)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.training_loss(x, masks)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8,)}, r"widths=\(8,\)"),
        ({"out_channels": 0, "in_channels": -1}, "in_channels=-1.*out_channels=0"),
        ({"target": "classes"}, "target='classes' with out_channels=1.*use target='masks'"),
    ],
)
def test_a_shape_that_cannot_be_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        UNetConfig(**changes)


def test_images_and_targets_that_do_not_fit_are_named():
    model, x = small(), noise(1, 1, 8, 8)
    with pytest.raises(InputError, match="3 channels.*in_channels=1"):
        model(noise(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"target has shape \[1, 1, 4, 4\], expected \[1, 1, 8, 8\]"):
        model.training_loss(x, noise(1, 1, 4, 4))
    with pytest.raises(InputError, match=r"masks are within 0\.\.1; these run from"):
        model.training_loss(x, noise(1, 1, 8, 8))
    with pytest.raises(InputError, match="NaN"):
        model.training_loss(x, noise(1, 1, 8, 8) * float("nan"))
