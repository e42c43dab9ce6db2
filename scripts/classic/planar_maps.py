"""Autoencoder, PCA and t-SNE as maps to the plane: what each is good at.

Command   python scripts/classic/planar_maps.py
Data      1,797 handwritten digits of 64 pixels (scikit-learn).
Claim     t-SNE keeps neighbourhoods best, an autoencoder with two latents comes next and PCA last. The autoencoder and
          PCA are functions: digits that were not there can be placed. t-SNE is not. Van der Maaten and Hinton 2008.
"""

import matplotlib.pyplot as plt
import torch
from common import GREY, Demo, digits, start

import saekit as sk
from saekit.autoencoders import PlanarMap, autoencoder_map, knn_accuracy, pca_map, trustworthiness, tsne_map

NAMES = ("PCA", "autoencoder 64-256-128-2", "t-SNE")


def network(x: torch.Tensor, n_epochs: float) -> PlanarMap:
    """The code of a deep autoencoder trained on `x`."""
    model = sk.DeepAutoencoder(
        sk.DeepAutoencoderConfig(
            d_in=64, d_latent=2, network=sk.Mlp(hidden=(256, 128)), likelihood=sk.SquaredError(link="sigmoid")
        )
    )
    model.set_data_mean_(x.mean(0))
    config = sk.FitConfig(lr=2e-3, lr_decay_fraction=0.7, progress=False)
    return autoencoder_map(model, x, lambda: sk.fit([model], sk.ShuffledRows(x, 64, n_epochs), config))


def main(demo: Demo) -> None:
    """Place all digits in three ways; then hold out some and place them with what was learnt from the others."""
    data = digits()
    x, labels = torch.cat([data.train, data.test]), torch.cat([data.train_labels, data.test_labels])
    x, labels = x[: demo.pick(len(x), 200)], labels[: demo.pick(len(x), 200)]
    n_epochs = demo.pick(80.0, 2.0)
    pca, ours, tsne = NAMES
    maps = dict(zip(NAMES, (pca_map(x), network(x, n_epochs), tsne_map(x)), strict=True))
    accuracy = {name: knn_accuracy(each.points, labels) for name, each in maps.items()}
    trust = {name: trustworthiness(x, each.points) for name, each in maps.items()}

    seen, labels_seen = x[::2], labels[::2]
    held: dict[str, float | None] = {tsne: None}
    for name, each in ((pca, pca_map(seen)), (ours, network(seen, 2 * n_epochs))):
        assert each.place is not None
        held[name] = knn_accuracy(each.points, labels_seen, new_points=each.place(x[1::2]), new_labels=labels[1::2])

    demo.row(
        "2-D 5-neighbour accuracy, autoencoder",
        accuracy[ours],
        f"> {accuracy[pca]:.3f}, PCA's",
        "this run",
        accuracy[ours] > accuracy[pca],
    )
    demo.row(
        "2-D 5-neighbour accuracy, t-SNE",
        accuracy[tsne],
        f"> {accuracy[ours]:.3f}, the autoencoder's",
        "this run",
        accuracy[tsne] > accuracy[ours],
    )
    demo.row("trustworthiness(10), PCA", trust[pca], "lowest", "this run", trust[pca] < trust[ours])
    demo.row(
        "trustworthiness(10), autoencoder", trust[ours], "between", "this run", trust[pca] < trust[ours] < trust[tsne]
    )
    demo.row("trustworthiness(10), t-SNE", trust[tsne], "highest", "this run", trust[tsne] > trust[ours])
    demo.row(
        "5-neighbour accuracy of held-out digits, autoencoder",
        float(held[ours] or 0),
        f"> {held[pca]:.3f}, PCA's",
        "half of the digits; t-SNE has no map for them",
        (held[ours] or 0) > (held[pca] or 0) and maps[tsne].place is None,
    )
    for name, each in maps.items():
        out = "no map" if held[name] is None else f"{held[name]:.3f}"
        print(f"| {name} | {accuracy[name]:.3f} | {trust[name]:.3f} | {each.seconds:.1f} s | {out} |")

    figure, axes = plt.subplots(1, 3, figsize=(10, 4.3))
    for axis, (name, each) in zip(axes, maps.items(), strict=True):
        for digit in range(10):
            mine = each.points[labels == digit]
            axis.scatter(*mine.T, s=5, color=plt.get_cmap("tab10")(digit), linewidths=0)
            middle = mine.median(0).values
            axis.annotate(str(digit), middle.tolist(), ha="center", va="center", weight="bold")
        out = "no" if held[name] is None else f"yes, {held[name]:.3f}"
        axis.set_title(name)
        axis.set_xlabel(
            f"5 neighbours {accuracy[name]:.3f}\ntrustworthiness {trust[name]:.3f}\n{each.seconds:.1f} seconds\n"
            f"places new digits: {out}",
            color=GREY,
        )
        axis.set_xticks([])
        axis.set_yticks([])
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
