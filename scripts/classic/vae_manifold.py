"""The plane as a map of clothes: a variational autoencoder with two latents.

Command   python scripts/classic/vae_manifold.py
Data      Fashion-MNIST, binarised anew in every epoch.
Claim     Two latents with a normal prior fill the plane without holes: decoding a grid of the prior's quantiles gives
          garments that turn into one another, and nearest neighbours in the plane share their class far more often than
          on the two first principal components. Kingma and Welling 2013, figure 4.
"""

import matplotlib.pyplot as plt
import torch
from common import Demo, fashion_mnist, neighbours_accuracy, pca_codes, start, tile
from vae_samples import Binarised

import saekit as sk

SIDE = 12


def main(demo: Demo) -> None:
    """Train, place the test pictures, decode the grid."""
    data = fashion_mnist(demo)
    vae = sk.VariationalAutoencoder(
        sk.VariationalAutoencoderConfig(
            d_in=784, d_latent=2, network=sk.Mlp(hidden=(512, 256)), likelihood=sk.Bernoulli()
        )
    )
    vae.set_data_mean_(data.train.mean(0))
    rows = Binarised(sk.ShuffledRows(data.train, 200, n_epochs=demo.pick(8.0, 1.0)))
    sk.fit([vae], rows, sk.FitConfig(lr=1.5e-3, lr_warmup_fraction=0.1, lr_decay_fraction=0.6, progress=False))
    vae.eval()
    with torch.no_grad():
        train_codes, codes = vae.encode(data.train[:10_000]), vae.encode(data.test)
    labels = data.train_labels[:10_000]
    accuracy = neighbours_accuracy(train_codes, labels, codes, data.test_labels)
    by_pca = neighbours_accuracy(
        pca_codes(data.train, data.train[:10_000], 2), labels, pca_codes(data.train, data.test, 2), data.test_labels
    )
    demo.row(
        "15-neighbour accuracy in the plane of the VAE",
        accuracy,
        f"> {by_pca:.3f}, PCA-2's",
        "the same pictures, this run",
        accuracy > by_pca,
    )
    elbo = float(vae.elbo(data.test.bernoulli(generator=torch.Generator().manual_seed(0))).mean())
    demo.row("test ELBO in nats, two latents", elbo, "below -240: 20 latents do better", "vae_samples.py", elbo < -240)

    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.03, 0.97, SIDE))
    grid = torch.stack(torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        manifold = vae.decode(grid)
    figure, (pictures, places) = plt.subplots(1, 2, figsize=(9, 4.2))
    pictures.imshow(tile(manifold, SIDE, gap=0), vmin=0, vmax=1)
    pictures.set_title("Decoded quantiles of the prior")
    pictures.set_axis_off()
    shown = codes[:2500]
    for label, name in enumerate(data.names):
        mine = shown[data.test_labels[:2500] == label]
        places.scatter(*mine.T, s=4, color=plt.get_cmap("tab10")(label), label=name, linewidths=0)
    places.legend(markerscale=3, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    places.set_title(f"Codes of test pictures: {accuracy:.0%} by neighbours, PCA {by_pca:.0%}")
    places.set_xlim(-4, 4)
    places.set_ylim(-4, 4)
    places.set_aspect("equal")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
