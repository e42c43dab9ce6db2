"""Features learnt from corrupted inputs survive corruption.

Command   python scripts/classic/denoising_features.py
Data      Fashion-MNIST, 10,000 pictures to train on, 5,000 to judge by.
Claim     Two stacks 784-600-300, pretrained layer by layer without labels, differ only in this: one saw noise on
          its inputs. A linear classifier on the clean codes of either is then given noisy pictures: on the denoising
          stack it keeps more of its accuracy. Vincent et al. 2010.
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, Demo, fashion_mnist, start
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import saekit as sk
from saekit.autoencoders import EncoderDecoder

WIDTHS = (784, 600, 300)
SIGMAS = (0.0, 0.15, 0.3, 0.45, 0.6)


def codes(stack: list[EncoderDecoder], x: Tensor) -> Tensor:
    """The latents of the top."""
    with torch.no_grad():
        for block in stack:
            x = block.encode(x)
    return x


def main(demo: Demo) -> None:
    """Pretrain both stacks, fit a classifier on each one's codes, add more and more noise to test pictures."""
    data = fashion_mnist(demo)
    train, labels = data.train[:10_000], data.train_labels[:10_000]
    test, test_labels = data.test[:5000], data.test_labels[:5000]
    stacks = {
        "plain stack": sk.autoencoder_stack(WIDTHS, code="sigmoid"),
        "denoising stack": sk.autoencoder_stack(
            WIDTHS, sk.DenoisingAutoencoder, code="sigmoid", corruption=sk.GaussianNoise(sigma=0.4)
        ),
    }
    accuracy: dict[str, list[float]] = {"pixels": []}
    for name, stack in ({"pixels": []} | stacks).items():
        if stack:
            config = sk.FitConfig(lr=2e-3, progress=False)
            sk.pretrain(stack, train, n_epochs=demo.pick(10.0, 0.5), batch_size=100, config=config)
        n_probe = demo.pick(4000, 300)
        probe = LogisticRegression(max_iter=demo.pick(100, 10), C=1.0)
        with torch.no_grad():
            probe.fit(codes(stack, train[:n_probe]).numpy(), labels[:n_probe].numpy())
        accuracy[name] = []
        for sigma in SIGMAS:
            generator = torch.Generator().manual_seed(0)
            noisy = sk.GaussianNoise(sigma=sigma)(test, generator).x if sigma else test
            accuracy[name].append(float(probe.score(codes(stack, noisy).numpy(), test_labels.numpy())))
    for sigma in (0.3, 0.45, 0.6):
        at = SIGMAS.index(sigma)
        ours, plain = accuracy["denoising stack"][at], accuracy["plain stack"][at]
        demo.row(
            f"accuracy on pictures with noise of {sigma}, denoising stack",
            ours,
            f"> {plain:.3f}, the plain stack's",
            "the same run (ordering: Vincent et al. 2010)",
            ours > plain,
        )
    draw(demo, accuracy)


def draw(demo: Demo, accuracy: dict[str, list[float]]) -> None:
    """Accuracy by size of the noise."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (name, values), colour in zip(accuracy.items(), (GREY, ORANGE, BLUE), strict=True):
        axis.plot(SIGMAS, values, "o-", color=colour, label=name)
        axis.annotate(name, (SIGMAS[-1], values[-1]), xytext=(6, -3), textcoords="offset points", color=colour)
    axis.axvline(0.4, color=GREY, linewidth=0.8, linestyle=":")
    axis.annotate("seen in training", (0.4, axis.get_ylim()[0]), xytext=(4, 4), textcoords="offset points", color=GREY)
    axis.set_xlabel("noise in the test pictures")
    axis.set_xlim(-0.02, 0.8)
    axis.set_title("Accuracy of a linear classifier that saw no noise")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
