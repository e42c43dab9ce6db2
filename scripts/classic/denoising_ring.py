"""On a ring a denoising autoencoder points back to the data, as far as the Bessel functions say.

Command   python scripts/classic/denoising_ring.py
Data      Points on a circle of radius 1, with Gaussian noise of size 0.2.
Claim     E[x | x~] lies on the ray of x~ at radius I1(r / s^2) / I0(r / s^2), which the learnt field follows in every
          direction. Steps along it end a little inside the circle: the mean of a piece of a circle is not on it.
          Vincent et al. 2010 (the manifold view); the formula is the mean of a von Mises distribution.
"""

import math

import matplotlib.pyplot as plt
import torch
from common import GREEN, GREY, RED, Demo, start

import saekit as sk

SIGMA = 0.2
RADII = (0.6, 0.8, 1.0, 1.2, 1.4)


def ring(n: int) -> torch.Tensor:
    """Points on the unit circle."""
    angle = torch.rand(n) * 2 * math.pi
    return torch.stack([angle.cos(), angle.sin()], 1)


def exact_radius(r: torch.Tensor) -> torch.Tensor:
    """Radius of E[x | x~] for |x~| = r."""
    concentration = r.double() / SIGMA**2
    return torch.special.i1e(concentration) / torch.special.i0e(concentration)


def main(demo: Demo) -> None:
    """Train; compare the field with the formula on five circles; walk along it."""
    model = sk.DenoisingAutoencoder(
        sk.DenoisingAutoencoderConfig(
            d_in=2, d_latent=64, network=sk.Mlp(hidden=(64,)), corruption=sk.GaussianNoise(sigma=SIGMA)
        )
    )
    rows = sk.ShuffledRows(ring(demo.pick(200_000, 2000)), 512, n_epochs=demo.pick(10.0, 1.0))
    sk.fit([model], rows, sk.FitConfig(lr=3e-3, lr_decay_fraction=0.7, progress=False))

    angle = torch.linspace(0, 2 * math.pi, 361)[:-1]
    outwards, along = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
    radial, sideways = [], []
    with torch.no_grad():
        for r in RADII:
            field = model.vector_field(r * outwards)
            radial.append((field * outwards).sum(1))
            sideways.append((field * along).sum(1).abs().max())
        landed = model.denoise(1.3 * outwards, n_steps=20).norm(dim=1)
    exact = exact_radius(torch.tensor(RADII)) - torch.tensor(RADII)
    worst = float((torch.stack(radial).double() - exact[:, None]).abs().max())
    demo.row(
        f"radial field at radii {RADII}: largest distance to I1/I0, any direction",
        worst,
        "< 0.03",
        "E[x | x~] = r I1(r/s^2) / I0(r/s^2), exact",
        worst < 0.03,
    )
    demo.row(
        "largest tangential part of the field", float(max(sideways)), "< 0.03", "0 by symmetry", max(sideways) < 0.03
    )
    inner = float(_fixed_radius())
    demo.row(
        "radius on which 20 steps land",
        float(landed.mean()),
        f"{inner:.4f} within 0.01, inside 1",
        "fixed point of the exact formula",
        abs(float(landed.mean()) - inner) < 0.01,
    )
    draw(demo, model)


def _fixed_radius() -> torch.Tensor:
    r = torch.tensor(1.0).double()
    for _ in range(1000):
        r = exact_radius(r)
    return r


def draw(demo: Demo, model: sk.DenoisingAutoencoder) -> None:
    """The field over clean and noisy points; its radial profile over the formula."""
    figure, (field, profile) = plt.subplots(1, 2, figsize=(9, 4.3), width_ratios=(1.1, 1))
    clean = ring(1000)
    noisy = clean + SIGMA * torch.randn_like(clean)
    field.scatter(*noisy.T, s=3, color=GREY, alpha=0.5, label="noisy", linewidths=0)
    field.scatter(*clean.T, s=3, color=RED, label="clean", linewidths=0)
    turn = torch.linspace(0, 2 * math.pi, 29)[:-1]
    spokes = torch.stack([turn.cos(), turn.sin()], 1)
    some = torch.cat([r * spokes for r in (0.6, 1.5)] + [noisy[:120]])
    with torch.no_grad():
        arrows = model.vector_field(some)
    field.quiver(*some.T, *arrows.T, color=GREEN, angles="xy", scale_units="xy", scale=1, width=0.004)
    field.set_title("g(f(x)) - x leads back to the data")
    field.set_aspect("equal")
    field.set_axis_off()
    field.legend(loc="center", markerscale=3)
    r = torch.linspace(0.3, 1.7, 100)
    profile.axhline(0, color=GREY, linewidth=0.8)
    profile.plot(r, exact_radius(r) - r, color="black", linewidth=3, alpha=0.3, label="exact: $I_1/I_0$ - r")
    outwards = ring(len(r))
    with torch.no_grad():
        found = (model.vector_field(r[:, None] * outwards) * outwards).sum(1)
    profile.plot(r, found, ".", color=GREEN, markersize=4, label="learnt, random directions")
    profile.axvline(1, color=RED, linewidth=0.8, linestyle=":")
    profile.annotate(
        "zero inside the ring", (float(_fixed_radius()), 0), (0.42, -0.35), arrowprops={"arrowstyle": "->"}
    )
    profile.set_xlabel("radius r")
    profile.set_title("Radial part of the field")
    profile.legend()
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
