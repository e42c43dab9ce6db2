"""Every layout of other projects is opened, and gives what its own definition gives in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import LAYOUTS, D, Foreign

from saekit.autoencoders import Transcoder
from saekit.interop import READABLE, load_sae


@pytest.fixture(params=LAYOUTS)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Foreign:
    return LAYOUTS[request.param](tmp_path)


def rows(n: int = 64) -> np.ndarray:
    generator = np.random.default_rng(7)
    return (1.5 * generator.normal(size=(n, D)) + generator.normal(size=D)).astype(np.float32).astype(np.float64)


@torch.no_grad()
def test_it_encodes_and_reconstructs_as_its_definition_says(foreign):
    sae, x = load_sae(foreign.path, **foreign.options), rows()
    latents, x_hat = foreign.define(x)
    x32 = torch.from_numpy(x).float()
    assert 0 < np.count_nonzero(latents) < latents.size
    np.testing.assert_allclose(sae.encode(x32).numpy(), latents, rtol=2e-5, atol=2e-5 * np.abs(latents).max())
    np.testing.assert_allclose(sae(x32).numpy(), x_hat, rtol=2e-5, atol=2e-5 * np.abs(x_hat).max())
    active = sae.encode_sparse(x32)
    assert np.array_equal(active.row_offsets.diff().numpy(), np.count_nonzero(latents, axis=1))


def test_its_format_is_found_from_its_files_and_remembered(foreign):
    sae = load_sae(foreign.path, **foreign.options)
    assert sae.provenance["source"]["format"] == foreign.format
    assert sae.provenance.get("hook_point") == foreign.hook_point
    assert load_sae(foreign.path, format=foreign.format, **foreign.options).config == sae.config
    if not isinstance(sae, Transcoder):
        assert sae.config.token_norm == foreign.token_norm


def test_it_is_the_same_as_our_checkpoint(foreign, tmp_path):
    sae, x = load_sae(foreign.path, **foreign.options), torch.from_numpy(rows()).float()
    again = load_sae(sae.save(tmp_path / "ours"))
    assert type(again) is type(sae)
    assert again.provenance == sae.provenance
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))


def test_every_readable_format_has_a_layout(tmp_path):
    formats = set()
    for i, make in enumerate(LAYOUTS.values()):
        (tmp_path / str(i)).mkdir()
        formats.add(make(tmp_path / str(i)).format)
    assert formats == set(READABLE)
