"""Restricted Boltzmann machines, stacked, unrolled and fine-tuned: the deep autoencoder of 2006.

Command   python scripts/classic/rbm_pretraining.py
Data      Fashion-MNIST, 60,000 + 10,000 pictures of 784 pixels; grey values are taken as probabilities.
Claim     784-1000-500-250-30 with sigmoid units does not train from random weights in the epochs in which, started from
          a stack of machines that were each trained on the one below, it leaves less than PCA with 30 components
          (Hinton and Salakhutdinov 2006). Today's units and initial weights need no pretraining; those of nn.Linear
          as it comes are worse than PCA.
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREEN, GREY, ORANGE, RED, Demo, fashion_mnist, pca_sum_of_squares, start, sum_of_squares, tile
from torch import nn

import saekit as sk
from saekit.autoencoders import IMAGES_30

EPOCHS = 4
SOURCE = "PCA of the training pictures, in this run"


def main(demo: Demo) -> None:
    """Four ways to begin, four epochs each."""
    data = fashion_mnist(demo)
    widths = demo.pick(IMAGES_30, (784, 16, 30))
    pca = pca_sum_of_squares(data.train, data.test, 30)

    stack = sk.rbm_stack(widths)
    lr, lr_code = 2e-3, 5e-4
    configs = [sk.FitConfig(lr=lr if i < len(stack) - 1 else lr_code, clip_grad_norm=0.0) for i in range(len(stack))]
    sk.pretrain(stack, data.train, n_epochs=demo.pick(3, 0.5), batch_size=200, config=configs)
    unrolled = sk.unroll(stack)

    sigmoid = sk.DeepAutoencoderConfig(
        d_in=784,
        d_latent=30,
        network=sk.Mlp(hidden=widths[1:-1], activation="sigmoid"),
        likelihood=sk.Bernoulli(),
    )
    silu = sk.DeepAutoencoderConfig(
        d_in=784, d_latent=30, network=sk.Mlp(hidden=widths[1:-1]), likelihood=sk.SquaredError(link="sigmoid")
    )
    random = sk.DeepAutoencoder(sigmoid)
    modern = sk.DeepAutoencoder(silu)
    modern.set_data_mean_(data.train.mean(0))
    default = with_default_weights(sk.DeepAutoencoder(silu))

    models = {
        "sigmoid, random weights": (random, RED),
        "sigmoid, RBM stack": (unrolled, BLUE),
        "SiLU, weights of nn.Linear": (default, ORANGE),
        "SiLU, He weights": (modern, GREEN),
    }
    curves = {name: fine_tune(demo, model, data) for name, (model, _) in models.items()}
    before, after = curves["sigmoid, RBM stack"][0], curves["sigmoid, RBM stack"][-1]
    demo.row(
        "RBM stack, unrolled, not fine-tuned: test squared error",
        before,
        "falls on fine-tuning",
        f"{after:.2f} afterwards, in this run",
        after < before,
    )
    demo.row(
        "RBM stack, unrolled, fine-tuned: test squared error", after, f"< {pca:.2f}", f"PCA-30: {SOURCE}", after < pca
    )
    final = curves["sigmoid, random weights"][-1]
    demo.row(
        "the same network from random weights: test squared error",
        final,
        f"> {pca:.2f} (why one pretrained)",
        f"PCA-30: {SOURCE}",
        final > pca,
    )
    final = curves["SiLU, He weights"][-1]
    demo.row(
        "SiLU, He weights, no pretraining: test squared error", final, f"< {pca:.2f}", f"PCA-30: {SOURCE}", final < pca
    )
    demo.save_figure(draw(data, stack, models, curves, pca))


def fine_tune(demo: Demo, model: sk.DeepAutoencoder, data) -> list[float]:
    """Test error before and after each epoch."""
    errors = [sum_of_squares(model, data.test)]
    epochs = demo.pick(EPOCHS, 1)
    for epoch in range(epochs):
        # One schedule over all epochs: each call of fit is a quarter of it.
        lr = 1e-3 * (1.0, 1.0, 0.6, 0.2)[epoch]
        config = sk.FitConfig(
            lr=lr, lr_warmup_fraction=0.1 if epoch == 0 else 0.0, lr_decay_fraction=0.0, clip_grad_norm=0.0
        )
        sk.fit([model], sk.ShuffledRows(data.train, batch_size=200, seed=epoch), config)
        errors.append(sum_of_squares(model, data.test))
    return errors


def with_default_weights(model: sk.DeepAutoencoder) -> sk.DeepAutoencoder:
    """The same network as PyTorch would have begun it."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


@torch.no_grad()
def draw(data, stack, models, curves, pca):
    """Error by epoch; filters of the lowest machine; test pictures before and after fine-tuning."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[1.3, 1, 1.35])
    for name, (_, color) in models.items():
        shown = curves[name] if curves[name][0] < 60 else [None, *curves[name][1:]]
        left.plot(range(len(shown)), shown, "o-", color=color, ms=4, label=name)
    left.axhline(pca, color=GREY, ls="--", label="PCA-30")
    left.set(xlabel="epochs of fine-tuning", title="squared error per test picture", xticks=range(len(curves) + 1))
    left.legend(fontsize=8)
    filters = stack[0].W.T[:36]
    scale = filters.abs().amax(1, keepdim=True)
    middle.imshow(tile(0.5 + 0.5 * filters / scale, 6, fill=0.5), cmap="RdBu_r", vmin=0, vmax=1)
    middle.set_title("filters of the lowest machine")
    x = data.test[[0, 1, 2, 3, 6, 8, 18, 23]]
    up_down = x
    for block in stack:
        up_down = block.encode(up_down)
    for block in reversed(stack):
        up_down = block.decode(up_down)
    pictures = [x, up_down, models["sigmoid, RBM stack"][0](x), models["sigmoid, random weights"][0](x)]
    right.imshow(tile(torch.cat(pictures), len(x)))
    names = ["original", "stack up\nand down", "fine-tuned", "no stack"]
    right.set_yticks([29 * i + 14 for i in range(4)], names)
    right.set_xticks([])
    right.set_title("test pictures through 30 numbers")
    middle.axis("off")
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    start(main)
