"""Documents in the plane: 2000-500-250-125-2 against latent semantic analysis.

Command   python scripts/classic/documents.py
Data      Descriptions of Debian packages: counts of 2,000 stems, one description per source package, 16 sections.
Claim     A deep autoencoder whose code is two numbers puts documents of one section near one another far better than
          the two first components of latent semantic analysis (Hinton and Salakhutdinov 2006, figure 4).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import BLUE, GREY, ORANGE, RED, Demo, debian_descriptions, neighbours_accuracy, start
from torch import Tensor

import saekit as sk
from saekit.autoencoders import DOCUMENTS_2

N_RETRIEVED = (1, 3, 7, 15, 31, 63)


def main(demo: Demo) -> None:
    """Train on counts, with noise on the code; judge both planes by the sections of unseen documents."""
    data, _ = debian_descriptions(demo)
    widths = demo.pick(DOCUMENTS_2, (2000, 32, 2))
    config = sk.DeepAutoencoderConfig(
        d_in=2000,
        d_latent=2,
        network=sk.Mlp(hidden=widths[1:-1], log1p_input=True),
        likelihood=sk.Multinomial(),
        code_noise=0.1,
    )
    model = sk.DeepAutoencoder(config)
    model.set_data_mean_(data.train.mean(0))
    fit = sk.FitConfig(lr=1e-3, lr_warmup_fraction=0.2, lr_decay_fraction=0.8, clip_grad_norm=0.0)
    sk.fit([model], sk.ShuffledRows(data.train, batch_size=100, n_epochs=demo.pick(25, 2)), fit)
    model.eval()

    codes = {"autoencoder": (encode(model, data.train), encode(model, data.test))}
    for name, weigh in (("LSA, log counts", torch.log1p), ("LSA, tf-idf", tf_idf(data.train))):
        codes[name] = lsa(weigh(data.train), weigh(data.test), 2)
    accuracy = {
        name: neighbours_accuracy(train, data.train_labels, test, data.test_labels, 15)
        for name, (train, test) in codes.items()
    }
    for name, value in accuracy.items():
        print(f"{name}: {value:.3f}")
    best = max(value for name, value in accuracy.items() if name.startswith("LSA"))
    demo.row(
        "15-neighbour accuracy on 2-D codes of documents, 2000-500-250-125-2",
        accuracy["autoencoder"],
        f">= {best + 0.15:.3f} (LSA-2 + 0.15)",
        "the better of LSA on log counts and on tf-idf, in this run",
        accuracy["autoencoder"] >= best + 0.15,
    )
    with torch.no_grad():
        nats = float(model.nll(data.test).mean())
        words = data.test / data.test.sum(1, keepdim=True)
        share = (data.train.sum(0) + 1) / (data.train.sum(0) + 1).sum()
        unigram = float(-(words * share.log()).sum(1).mean())
    demo.row(
        "cross-entropy of test documents, nats per word",
        nats,
        f"< {unigram:.3f}",
        "word frequencies of the training documents, in this run",
        nats < unigram,
    )
    demo.save_figure(draw(data, codes, accuracy))


@torch.no_grad()
def encode(model: sk.DeepAutoencoder, x: Tensor) -> Tensor:
    return model.encode(x)


def tf_idf(train: Tensor):
    """Weigh counts by how rare a word is, and make rows of length 1."""
    rarity = (len(train) / (1 + (train > 0).sum(0))).log()
    return lambda x: torch.nn.functional.normalize(x * rarity, dim=1)


def lsa(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Latent semantic analysis: the first singular directions of the (uncentred) rows."""
    directions = torch.linalg.eigh(train.T @ train).eigenvectors[:, -k:]
    return train @ directions, test @ directions


def same_label_rate(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> list[float]:
    """Share of each test document's nearest training documents that are of its section."""
    order = torch.cdist(test, train).argsort(1)[:, : max(N_RETRIEVED)]
    is_same = (train_labels[order] == test_labels[:, None]).float()
    return [float(is_same[:, :n].mean()) for n in N_RETRIEVED]


def spread(points: Tensor) -> Tensor:
    """Squeezed towards the middle, so that the crowd there and the rays around it are seen together."""
    centre = points.median(0).values
    width = (points - centre).abs().median(0).values
    return torch.asinh((points - centre) / width)


def draw(data, codes, accuracy):
    """The plane of each, coloured by section, and how often neighbours share one."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), width_ratios=[1.15, 1.15, 0.9])
    shown = ["autoencoder", max((n for n in codes if n != "autoencoder"), key=accuracy.__getitem__)]
    colors = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
    for axis, name in zip(axes, shown, strict=False):
        points = spread(codes[name][1])
        for label, section in enumerate(data.names):
            mine = points[data.test_labels == label]
            axis.scatter(*mine.T, s=5, color=colors[label], label=section, linewidths=0)
            if len(mine) > 40:
                axis.annotate(
                    section,
                    mine.median(0).values.tolist(),
                    fontsize=8,
                    weight="bold",
                    ha="center",
                    bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "edgecolor": "none"},
                )
        low, high = points.quantile(0.002, dim=0), points.quantile(0.998, dim=0)
        axis.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])), xticks=[], yticks=[])
        axis.set_title(f"{name}: 15-neighbour accuracy {accuracy[name]:.2f}")
    for (name, (train, test)), color in zip(codes.items(), (BLUE, ORANGE, RED), strict=True):
        rate = same_label_rate(train, data.train_labels, test, data.test_labels)
        axes[2].plot(N_RETRIEVED, rate, "o-", ms=4, color=color, label=name)
    chance = float(data.test_labels.bincount().double().div(len(data.test_labels)).square().sum())
    axes[2].axhline(chance, color=GREY, ls="--", label="chance")
    axes[2].set(xscale="log", xticks=N_RETRIEVED, xticklabels=N_RETRIEVED, xlabel="documents retrieved", ylim=(0, None))
    axes[2].set_title("share of the same section")
    axes[2].minorticks_off()
    axes[2].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    start(main)
