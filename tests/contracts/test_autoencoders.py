"""What holds for every autoencoder class: saved and loaded it is the same, damage is named, a kill leaves it whole."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from autoencoder_cases import CASES, D_IN, Case
from safetensors.torch import load_file, save_file
from torch.func import functional_call

import saekit as sk
import saekit.autoencoders
from saekit.autoencoders import checkpoint
from saekit.autoencoders.modules import seeded
from saekit.errors import CheckpointError
from saekit.files import hash_file

PROVENANCE = {"hook_point": "layers.6", "options": {"drop_first": 1}, "store_hash": "ab"}
every_case = pytest.mark.parametrize("case", [case for case in CASES if case.trains], ids=str)


def trained(case: Case) -> sk.Autoencoder:
    """A model whose parameters and buffers have all left their initial values."""
    model = case.make()
    if isinstance(model, sk.SparseAutoencoder):
        model.set_input_moments_(torch.randn(D_IN, generator=torch.Generator().manual_seed(3)), 3.0)
        model.sparsity_scale.fill_(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        with seeded(step):
            model.training_loss(case.batch(16, seed=step)).total.backward()
        model.project_gradients_()
        optimizer.step()
        model.project_()
    optimizer.zero_grad()
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return trained(CASES[0]).save(tmp_path / "checkpoint", PROVENANCE)


def test_every_class_has_a_case():
    public = vars(saekit.autoencoders).values()
    classes = {c for c in public if inspect.isclass(c) and issubclass(c, sk.Autoencoder) and not inspect.isabstract(c)}
    assert classes == {case.kind for case in CASES}


@every_case
def test_loaded_is_what_was_saved_bit_for_bit(case, tmp_path):
    model = trained(case)
    loaded = sk.load_autoencoder(model.save(tmp_path / "checkpoint", PROVENANCE), **case.modules())
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.provenance == PROVENANCE
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert (tensor.dtype, tensor.stride()) == (state[name].dtype, state[name].stride()), name


@every_case
def test_a_loaded_model_trains_on_as_the_saved_one_does(case, tmp_path):
    model = trained(case)
    loaded = type(model).load(model.save(tmp_path / "checkpoint"), **case.modules())
    for step in range(2):
        totals = []
        for each in (model, loaded):
            with seeded(step):
                totals.append(each.training_loss(case.batch(16, seed=4)).total)
        assert torch.equal(*totals)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), loaded.buffers(), strict=True))


@every_case
def test_forward_is_decode_after_encode_and_keeps_the_shape(case):
    model, x = trained(case).eval(), case.batch(5, seed=5)
    assert torch.equal(model(x), model.decode(model.encode(x)))
    assert model(x).shape == x.shape


@every_case
def test_in_eval_mode_encoding_is_deterministic_and_changes_nothing(case):
    model, x = trained(case).eval(), case.batch(5, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with seeded(1):
        first = model.encode(x), model(x), case.example_loss(model, x)
    with seeded(2):
        second = model.encode(x), model(x), case.example_loss(model, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_case
def test_the_loss_of_an_example_does_not_depend_on_the_batch(case):
    model, x = trained(case).eval().double(), case.batch(7, seed=5).double()
    together = case.example_loss(model, x)
    assert together.shape == (7,)
    alone = torch.cat([case.example_loss(model, row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.encode(x)[2:3], model.encode(x[2:3]), rtol=1e-10, atol=1e-10)


@every_case
def test_the_loss_has_the_gradient_that_differences_give(case):
    model = trained(case).double()
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    x = case.batch(4, seed=6).double()

    def loss(*parameters):
        # Buffers that the loss moves are new each time.
        state = {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}
        with seeded(0):
            return functional_call(LossOf(model, case), state | dict(zip(names, parameters, strict=True)), (x,))

    inputs = tuple(parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True, atol=1e-6)


class LossOf(torch.nn.Module):
    """The loss as a forward pass, which `functional_call` can be given."""

    def __init__(self, model: sk.Autoencoder, case: Case) -> None:
        super().__init__()
        self.model, self.case = model, case

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.case.smooth_loss(self.model, x)


@every_case
def test_under_bfloat16_autocast_the_loss_is_within_two_percent(case):
    exact, rounded, x = trained(case), trained(case), case.batch(64, seed=7)
    with seeded(0):
        expected = case.smooth_loss(exact, x)
    with seeded(0), torch.autocast("cpu", torch.bfloat16):
        found = case.smooth_loss(rounded, x)
        found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in rounded.parameters())


@every_case
def test_its_precision_is_that_of_its_parameters(case):
    model, x = trained(case).double(), case.batch(3, seed=5).double()
    assert {model.encode(x).dtype, model(x).dtype, case.smooth_loss(model, x).dtype} == {torch.float64}


@every_case
def test_the_one_loop_trains_it(case):
    model = case.make()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rows = sk.ShuffledRows(case.batch(96, seed=8), batch_size=32, n_epochs=2)
    result = sk.fit([model], rows, sk.FitConfig(lr=0.01, progress=False))
    assert result.n_steps == 6
    assert result.final[0]["fvu"] > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every_case
def test_nans_in_the_data_are_an_error(case):
    x = case.batch(32, seed=8)
    x[3, 2] = float("nan")
    with pytest.raises(sk.InputError, match=r"x\[3, 2\] is nan|NaN"):
        sk.fit([case.make()], [x], sk.FitConfig(progress=False))


@every_case
def test_sizes_of_zero_are_an_error_that_names_them(case):
    for name in {"d_in", "d_latent", "d_sae"} & set(vars(case.config)):
        with pytest.raises(sk.ConfigError, match=f"{name}=0"):
            dataclasses.replace(case.config, **{name: 0})


@every_case
def test_making_one_leaves_the_global_random_state_alone(case):
    modules = case.modules()
    before = torch.get_rng_state()
    case.kind(case.config, **modules)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_files_are_the_documented_ones(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["meta.json", "weights.safetensors"]
    meta = json.loads((saved / "meta.json").read_text())
    assert {"kind": "Autoencoder", "schema": 1, "class": "SparseAutoencoder"}.items() <= meta.items()
    assert meta["content_hash"] == hash_file(saved / "weights.safetensors")
    documented = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = documented.split("## Checkpoint")[1].split("\n## ")[0]
    for name in (*meta, *load_file(saved / "weights.safetensors")):
        assert f"`{name}`" in section, name


def test_saving_again_replaces_the_old_one_and_keeps_the_provenance(saved):
    model = sk.load_autoencoder(saved)
    with torch.no_grad():
        next(model.parameters()).fill_(7)
    model.save(saved)
    again = sk.load_autoencoder(saved)
    assert bool((next(again.parameters()) == 7).all())
    assert again.provenance == PROVENANCE
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_replacing_works_where_directories_cannot_be_exchanged(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "_exchange", lambda a, b: False)
    trained(CASES[1]).save(saved)
    assert isinstance(sk.load_autoencoder(saved).config.sparsity, sk.KLDivergence)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_without_exchange_the_old_one_is_found_between_the_two_renames(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "_exchange", lambda a, b: False)
    rename = os.rename

    def die_at_the_second(source, target):
        if Path(target) == saved:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        trained(CASES[1]).save(saved)
    monkeypatch.undo()
    assert not saved.exists()
    assert isinstance(sk.load_autoencoder(saved).config.sparsity, sk.Relu)
    trained(CASES[2]).save(saved)
    assert isinstance(sk.load_autoencoder(saved).config.sparsity, sk.TopK)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


KILLER = """
import os, signal, sys, time, torch, saekit as sk

path, n_kills = sys.argv[1], int(sys.argv[2])
sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=64, d_sae=2048))
before, last = -1.0, None

def inode(path):
    return os.stat(path).st_ino if os.path.exists(path) else None

for attempt in range(n_kills):
    child = os.fork()
    if child == 0:
        while True:
            before += 1
            with torch.no_grad():
                for parameter in sae.parameters():
                    parameter.fill_(before)
            sae.save(path)
    while inode(path) == last:
        time.sleep(0.001)
    time.sleep(0.0037 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # load checks the hash of the weights; all parameters must be of one save.
    sae = sk.SparseAutoencoder.load(path)
    values = {extreme.item() for parameter in sae.parameters() for extreme in parameter.aminmax()}
    assert len(values) == 1 and values.pop() >= before, values
    before, last = sae.b_dec[0].item(), inode(path)
print("whole after every kill, last save", before)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    script = [sys.executable, "-c", KILLER, str(tmp_path / "checkpoint"), "12"]
    finished = subprocess.run(
        script, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert "whole after every kill" in finished.stdout, finished.stderr
    assert float(finished.stdout.split()[-1]) >= 11  # every child but the first replaced one at least once


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Damage a checkpoint, one way after the other; what the error must say."""
    weights, meta = path / "weights.safetensors", path / "meta.json"
    whole, text = weights.read_bytes(), meta.read_text()

    def reset() -> None:
        weights.write_bytes(whole)
        meta.write_text(text)

    weights.write_bytes(whole[:-40])
    yield "truncated", rf"weights.safetensors was altered or truncated.*{len(whole) - 40} bytes"
    reset()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    yield "edited", "weights.safetensors was altered"
    reset()
    weights.unlink()
    yield "no weights", "weights.safetensors does not exist"
    reset()
    meta.write_text(text[: len(text) // 2])
    yield "half a meta", "meta.json is not valid JSON"
    reset()
    meta.write_text(text.replace('"schema": 1', '"schema": 99'))
    yield "from the future", "schema 99.*pip install -U saekit"
    reset()
    meta.write_text(text.replace('"SparseAutoencoder"', '"SparseAutoEncoder"'))
    yield "unknown class", "SparseAutoEncoder.*Has: 'SparseAutoencoder'"
    reset()
    meta.write_text(text.replace('"content_hash"', '"hash"'))
    yield "no hash", "lacks.*content_hash"
    reset()
    meta.write_text(text.replace('"d_sae": 20', '"d_sae": 20, "width": 3'))
    yield "unknown setting", "unknown fields.*width"
    reset()
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"][:, :4].contiguous()
    tensors["threshold"] = tensors.pop("b_enc")
    save_file(tensors, weights)
    meta.write_text(text.replace(json.loads(text)["content_hash"], hash_file(weights)))
    yield (
        "other tensors",
        r"missing b_enc \[20\]; unexpected threshold \[20\]; W_dec has shape \[20, 4\], expected \[20, 6\]",
    )
    reset()
    shutil.rmtree(path)
    yield "nothing", "is not a directory"


def test_every_damage_is_named(saved):
    n_seen = 0
    for damage, message in damages(saved):
        with pytest.raises(sk.SaekitError) as caught:
            sk.load_autoencoder(saved)
        assert re.search(message, str(caught.value)), (damage, str(caught.value))
        n_seen += 1
    assert n_seen == 10


def test_a_directory_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        trained(CASES[0]).save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_loading_as_another_class_names_the_right_one(saved):
    class Other(sk.SparseAutoencoder):
        pass

    with pytest.raises(CheckpointError, match=r"holds a SparseAutoencoder, not a Other"):
        Other.load(saved)
