"""The restricted Boltzmann machine against its own exact numbers.

Command   python scripts/classic/rbm_theory.py
Data      Draws of a machine of 6 + 4 units that is known; 1,797 digits of 64 pixels, drawn to black and white.
Claim     The gradient of mean F(data) - mean F(chains) is the formula of contrastive divergence; annealed importance
          sampling finds log Z where it can be counted; a machine trained by CD or PCD comes near the one that made
          the data (Hinton 2002; Tieleman 2008; Salakhutdinov and Murray 2008).
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, Demo, digits, start, tile
from torch import Tensor

import saekit as sk

COUNTED = "counted over all states, in this run"


def main(demo: Demo) -> None:
    """Gradient; recovery of a known machine; log Z and log-likelihood of digits."""
    gap = gradient_gap()
    demo.row(
        "RBM: largest gap between autograd of the free energies and the CD formula",
        gap,
        "< 1e-12",
        "(v h)_data - (v h)_chains, averaged by matrix products, in this run",
        gap < 1e-12,
    )
    divergences = recover(demo)
    least = divergences["independent"] / 5
    for name in ("CD-1", "CD-10", "PCD"):
        demo.row(
            f"KL(teacher || student) of {name}, 6 + 4 units, 5,000 draws, nats",
            divergences[name],
            f"< 0.02 (independent units: {divergences['independent']:.3f})",
            COUNTED,
            divergences[name] < min(0.02, least),
        )

    data = digits()
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.bernoulli(x, generator=generator) for x in (data.train, data.test))
    n_hidden = demo.pick(16, 8)
    rbm = sk.RBM(sk.RBMConfig(d_in=64, d_latent=n_hidden, chains="persistent", n_gibbs=5, n_chains=100))
    rbm.set_data_mean_(train.mean(0))
    config = sk.FitConfig(lr=5e-3, lr_warmup_fraction=0.0, lr_decay_fraction=0.8, clip_grad_norm=0.0)
    sk.fit([rbm], sk.ShuffledRows(train, batch_size=50, n_epochs=demo.pick(50, 2)), config)
    exact = rbm.exact_log_partition()
    n_temperatures = demo.pick((10, 30, 100, 300, 1000), (10, 30))
    annealed = [rbm.ais_log_partition(n_chains=256, n_temperatures=n) for n in n_temperatures]
    gap = abs(annealed[-1].value - exact.value)
    demo.row(
        f"AIS log Z of the digits' machine (64 + {n_hidden} units) less the exact one",
        gap,
        "< 0.05",
        f"{exact.value:.4f}, {COUNTED}",
        gap < 0.05,
    )
    likelihood = float(rbm.log_likelihood(test, exact).mean())
    rates = train.mean(0).clamp(0.01, 0.99)
    alone = float((test * rates.log() + (1 - test) * (1 - rates).log()).sum(1).mean())
    demo.row(
        "test log-likelihood of binary digits, nats",
        likelihood,
        f"> {alone:.2f}",
        "independent pixels, in this run",
        likelihood > alone,
    )
    torch.manual_seed(1)
    fantasies = rbm.gibbs(torch.bernoulli(rates.expand(40, -1)), demo.pick(5000, 5))
    shown = rbm.decode(rbm.encode(fantasies)).detach()
    demo.save_figure(draw(divergences, n_temperatures, annealed, exact.value, test, shown))


def gradient_gap() -> float:
    """Largest difference of the two gradients, over weights and biases."""
    torch.manual_seed(0)
    rbm = sk.RBM(sk.RBMConfig(d_in=20, d_latent=12, n_gibbs=3, weight_decay=0.0)).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0, 0.5)
    data = torch.rand(50, 20).round().double()
    torch.manual_seed(1)
    rbm.training_loss(data).total.backward()
    torch.manual_seed(1)
    chains = rbm.gibbs(data, 3)

    def moments(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = rbm.encode(v).detach()
        return v.T @ h / len(v), v.mean(0), h.mean(0)

    found = (rbm.W.grad, rbm.b_visible.grad, rbm.b_hidden.grad)
    formula = [-(a - b) for a, b in zip(moments(data), moments(chains), strict=True)]
    return max(float((a - b).abs().max()) for a, b in zip(found, formula, strict=True))


def recover(demo: Demo) -> dict[str, float]:
    """KL from a known machine to students of its draws, each counted over the 64 visible states."""
    torch.manual_seed(3)
    teacher = sk.RBM(sk.RBMConfig(d_in=6, d_latent=4))
    with torch.no_grad():
        # Biases at which units are on half of the time, so that what there is to learn is how they hang together.
        teacher.W.normal_(0, 1.5)
        teacher.b_visible.copy_(-teacher.W.sum(1) / 2)
        teacher.b_hidden.copy_(-teacher.W.sum(0) / 2)
    states = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).float()
    log_p = teacher.log_likelihood(states)
    draws = states[torch.multinomial(log_p.exp(), 5000, replacement=True)]

    def divergence(log_q: Tensor) -> float:
        return float((log_p.exp() * (log_p - log_q)).sum())

    found = {}
    for name, settings in {
        "CD-1": {"n_gibbs": 1},
        "CD-10": {"n_gibbs": 10},
        "PCD": {"chains": "persistent", "n_chains": 500},
    }.items():
        student = sk.RBM(sk.RBMConfig(d_in=6, d_latent=4, weight_decay=0.0, seed=5, **settings))
        student.set_data_mean_(draws.mean(0))
        rows = sk.ShuffledRows(draws, batch_size=250, n_epochs=demo.pick(50, 2))
        sk.fit([student], rows, sk.FitConfig(lr=0.02, lr_decay_fraction=0.8, clip_grad_norm=0.0))
        found[name] = divergence(student.log_likelihood(states))
    found["independent"] = divergence((states * draws.mean(0).log() + (1 - states) * (1 - draws.mean(0)).log()).sum(1))
    return found


def draw(divergences, n_temperatures, annealed, exact, test, fantasies):
    """KL of the students; AIS over its temperatures; digits and dreams."""
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), width_ratios=[1, 1.2, 0.9, 0.9])
    bars = axes[0].bar(list(divergences), list(divergences.values()), color=[BLUE, BLUE, BLUE, GREY])
    axes[0].bar_label(bars, fmt="%.3f")
    axes[0].set_title("KL(teacher || student), nats")
    values = torch.tensor([each.value for each in annealed])
    errors = torch.tensor([each.standard_error for each in annealed])
    axes[1].errorbar(n_temperatures, values, 2 * errors, fmt="o-", color=ORANGE, capsize=3, label="AIS, ± 2 s.e.")
    axes[1].axhline(exact, color=GREY, ls="--", label=f"counted: {exact:.3f}")
    axes[1].set(xscale="log", xlabel="temperatures", title="log Z of the digits' machine")
    axes[1].legend()
    axes[2].imshow(tile(test[:40], 5, 8, fill=0.3))
    axes[2].set_title("binary digits")
    axes[3].imshow(tile(fantasies, 5, 8, fill=0.3))
    axes[3].set_title("drawn by the machine")
    for axis in axes[2:]:
        axis.axis("off")
    return figure


if __name__ == "__main__":
    start(main)
