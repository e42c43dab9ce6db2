"""A deep autoencoder beats PCA at the same code size.

Command   python scripts/classic/deep_beats_pca.py
Data      Fashion-MNIST, 60,000 + 10,000 pictures of 784 pixels.
Claim     784-1000-500-250-k with a linear code leaves less of the test pictures than PCA with k components, k = 10, 30;
          so does a convolutional one at a sixth of the parameters. PCA is the best linear code there is, so what is won
          is won by nonlinearity. Codes are also compared as features: nearest neighbours on them.
"""

import matplotlib.pyplot as plt
import torch
from common import (
    BLUE,
    GREEN,
    GREY,
    Demo,
    fashion_mnist,
    neighbours_accuracy,
    pca_codes,
    pca_sum_of_squares,
    start,
    sum_of_squares,
    tile,
)

import saekit as sk

SOURCE = "PCA of the training pictures, in this run"


def main(demo: Demo) -> None:
    """Train AE-10, AE-30 and a convolutional AE-30; compare them with PCA."""
    data = fashion_mnist(demo)
    mlp = sk.Mlp(hidden=demo.pick((1000, 500, 250), (32,)))
    convolutional = sk.Convolutional(image=(1, 28, 28), channels=demo.pick((16, 32), (2,)), hidden=(128,))
    models = {
        "AE-10": train(demo, data.train, 10, mlp),
        "AE-30": train(demo, data.train, 30, mlp),
        "conv AE-30": train(demo, data.train, 30, convolutional),
    }
    errors = {name: sum_of_squares(model, data.test) for name, model in models.items()}
    pca = {k: pca_sum_of_squares(data.train, data.test, k) for k in (10, 30)}
    for name, error in errors.items():
        k = models[name].config.d_latent
        demo.row(
            f"test squared error of {name}, Fashion-MNIST",
            error,
            f"< {pca[k]:.2f}",
            f"PCA-{k}: {SOURCE}",
            error < pca[k],
        )
    n = demo.pick(10_000, 300)
    accuracy = {}
    for name, encode in (
        ("AE-30", lambda x: models["AE-30"].encode(x).detach()),
        ("PCA-30", lambda x: pca_codes(data.train, x, 30)),
    ):
        accuracy[name] = neighbours_accuracy(
            encode(data.train[:n]), data.train_labels[:n], encode(data.test[:2000]), data.test_labels[:2000], 5
        )
    demo.row(
        "5-neighbour accuracy on codes of AE-30 (10,000 training codes)",
        accuracy["AE-30"],
        f"PCA-30 {accuracy['PCA-30']:.3f}, and no worse by 0.02",
        SOURCE,
        accuracy["AE-30"] > accuracy["PCA-30"] - 0.02,
    )
    demo.save_figure(draw(data, models, errors, pca))


def train(demo: Demo, x, k: int, network) -> sk.DeepAutoencoder:
    """Squared error under a sigmoid, Adam, four epochs: what the comparison needs and no more."""
    config = sk.DeepAutoencoderConfig(d_in=784, d_latent=k, network=network, likelihood=sk.SquaredError(link="sigmoid"))
    model = sk.DeepAutoencoder(config)
    model.set_data_mean_(x.mean(0))
    rows = sk.ShuffledRows(x, batch_size=200, n_epochs=demo.pick(4, 1))
    sk.fit([model], rows, sk.FitConfig(lr=1e-3, lr_warmup_fraction=0.2, lr_decay_fraction=0.6, clip_grad_norm=0.0))
    return model.eval()


def draw(data, models, errors, pca):
    """Test pictures and their reconstructions beside the errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=[2.2, 1])
    x = data.test[[0, 1, 2, 3, 6, 7, 8, 18, 19, 23]]
    linear = {}
    for k in (10, 30):
        model = sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=784, d_latent=k))
        model.fit_closed_form_(data.train[:20_000])
        linear[f"PCA-{k}"] = model
    rows = [("original", None), ("PCA-10", linear["PCA-10"]), ("AE-10", models["AE-10"])]
    rows += [("PCA-30", linear["PCA-30"]), ("AE-30", models["AE-30"]), ("conv AE-30", models["conv AE-30"])]
    pictures = [x if model is None else model(x).detach() for _, model in rows]
    left.imshow(tile(torch.cat(pictures), len(x)))
    left.set_yticks([29 * i + 14 for i in range(len(rows))], [name for name, _ in rows])
    left.set_xticks([])
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    bars = {
        "PCA-10": pca[10],
        "AE-10": errors["AE-10"],
        "PCA-30": pca[30],
        "AE-30": errors["AE-30"],
        "conv AE-30": errors["conv AE-30"],
    }
    colors = [GREY if name.startswith("PCA") else GREEN if name.startswith("conv") else BLUE for name in bars]
    drawn = right.barh(list(bars)[::-1], list(bars.values())[::-1], color=colors[::-1])
    right.bar_label(drawn, fmt="%.2f", padding=3)
    right.set_title("squared error per test picture")
    right.set_xlim(0, max(bars.values()) * 1.2)
    return figure


if __name__ == "__main__":
    start(main)
