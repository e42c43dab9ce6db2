"""Features learnt from corrupted inputs survive corruption.

Command   python scripts/classic/denoising_features.py
Data      Fashion-MNIST, 10,000 pictures to train on, 5,000 to judge by.
Claim     Two stacks 784-300-150, pretrained layer by layer without labels, differ only in this: one saw half of
          its inputs masked. A linear classifier on the clean codes of either is then given pictures with masked pixels:
          on the denoising stack it keeps more of its accuracy. Vincent et al. 2010.
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, Demo, fashion_mnist, start
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import saekit as sk
from saekit.autoencoders import EncoderDecoder

WIDTHS = (784, 300, 150)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)


def codes(stack: list[EncoderDecoder], x: Tensor) -> Tensor:
    """The latents of the top."""
    with torch.no_grad():
        for block in stack:
            x = block.encode(x)
    return x


def main(demo: Demo) -> None:
    """Pretrain both stacks, fit a classifier on each one's codes, mask test pictures more and more."""
    data = fashion_mnist(demo)
    train, labels = data.train[:10_000], data.train_labels[:10_000]
    test, test_labels = data.test[:5000], data.test_labels[:5000]
    stacks = {
        "plain stack": sk.autoencoder_stack(WIDTHS, code="sigmoid"),
        "denoising stack": sk.autoencoder_stack(
            WIDTHS, sk.DenoisingAutoencoder, code="sigmoid", corruption=sk.Masking(share=0.5)
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
        for share in SHARES:
            generator = torch.Generator().manual_seed(0)
            masked = sk.Masking(share=share)(test, generator).x if share else test
            accuracy[name].append(float(probe.score(codes(stack, masked).numpy(), test_labels.numpy())))
    for share in (0.5, 0.75):
        at = SHARES.index(share)
        ours, plain = accuracy["denoising stack"][at], accuracy["plain stack"][at]
        demo.row(
            f"accuracy with {share:.0%} of the pixels masked, denoising stack",
            ours,
            f"> {plain:.3f}, the plain stack's",
            "the same run (ordering: Vincent et al. 2010)",
            ours > plain,
        )
    draw(demo, accuracy)


def draw(demo: Demo, accuracy: dict[str, list[float]]) -> None:
    """Accuracy by share of masked pixels."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (name, values), colour in zip(accuracy.items(), (GREY, ORANGE, BLUE), strict=True):
        axis.plot(SHARES, values, "o-", color=colour, label=name)
        axis.annotate(name, (SHARES[-1], values[-1]), xytext=(6, -3), textcoords="offset points", color=colour)
    axis.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axis.annotate("seen in training", (0.5, axis.get_ylim()[0]), xytext=(4, 4), textcoords="offset points", color=GREY)
    axis.set_xlabel("share of test pixels masked")
    axis.set_xlim(-0.02, 0.98)
    axis.set_title("Accuracy of a linear classifier that saw no masks")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
