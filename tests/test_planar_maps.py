"""Maps to the plane: what is scikit-learn's is scikit-learn's, and what has no map for new rows says so."""

import pytest
import torch

import saekit as sk
from saekit.autoencoders import autoencoder_map, knn_accuracy, pca_map, trustworthiness, tsne_map
from saekit.errors import ConfigError, InputError


def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    """Three of them, far apart, in a plane of a space of five dimensions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = torch.tensor([[0.0, 0, 0, 0, 0], [9, 0, 0, 0, 0], [0, 9, 0, 0, 0]])
    return centres[labels] + 0.3 * torch.randn(60, 5, generator=generator), labels


def test_pca_is_the_projection_on_the_two_first_axes_also_of_new_rows():
    x, _ = clusters()
    mapped = pca_map(x)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:2]
    torch.testing.assert_close(mapped.points.abs(), ((x - x.mean(0)) @ axes.T).abs(), rtol=1e-4, atol=1e-4)
    assert mapped.place is not None
    torch.testing.assert_close(mapped.place(x[:3]), mapped.points[:3])


def test_tsne_keeps_clusters_and_has_no_map_for_new_rows():
    x, labels = clusters()
    mapped = tsne_map(x, perplexity=10.0)
    assert mapped.points.shape == (60, 2)
    assert mapped.place is None
    assert knn_accuracy(mapped.points, labels) == 1.0
    assert trustworthiness(x, mapped.points, k=5) > 0.9


def test_an_autoencoders_code_is_a_map_for_new_rows_too():
    x, labels = clusters()
    model = sk.DeepAutoencoder(sk.DeepAutoencoderConfig(d_in=5, d_latent=2, network=sk.Mlp(hidden=(8,))))
    calls: list[int] = []
    mapped = autoencoder_map(model, x, train=lambda: calls.append(1))
    assert calls == [1]
    assert mapped.place is not None
    torch.testing.assert_close(mapped.place(x), mapped.points)
    new, truth = x + 0.01, labels
    accuracy = knn_accuracy(mapped.points, labels, new_points=mapped.place(new), new_labels=truth)
    assert accuracy > 0.8


def test_neighbours_are_counted_without_the_point_itself():
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1], [50, 50], [51, 50]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    # Of the first three each has the other two as neighbours; a tie goes to the smaller label.
    assert knn_accuracy(points, labels, k=2) == pytest.approx(3 / 5)
    assert knn_accuracy(points, labels, k=1) == pytest.approx(4 / 5)


def test_what_cannot_be_is_named():
    x, labels = clusters()
    with pytest.raises(InputError, match="Row 4 of x has NaN"):
        pca_map(torch.where(torch.arange(60)[:, None] == 4, float("nan"), x))
    with pytest.raises(ConfigError, match="perplexity=60"):
        tsne_map(x, perplexity=60.0)
    with pytest.raises(ConfigError, match="d_latent=2; this autoencoder has 3"):
        autoencoder_map(sk.DeepAutoencoder(sk.DeepAutoencoderConfig(d_in=5, d_latent=3)), x)
    with pytest.raises(ConfigError, match="k=60"):
        knn_accuracy(x, labels, k=60)
