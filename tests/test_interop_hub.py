"""The hub, without a network: a cache laid out as huggingface_hub's own, and an upload that is caught."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from foreign import LAYOUTS, Foreign
from huggingface_hub import constants

import saekit as sk
from saekit.cli import main
from saekit.errors import CheckpointError, ConfigError
from saekit.files import write_json
from saekit.interop import load_sae, push_to_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A cache folder that huggingface_hub takes for its own, with the network off."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def snapshot(self, repo: str, revision: str = "main", commit: str = COMMIT) -> Path:
        folder = self.cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        files = folder / "snapshots" / commit
        files.mkdir(parents=True, exist_ok=True)
        return files


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(cache)


def made(tmp_path: Path, layout: str) -> Foreign:
    folder = tmp_path / "made"
    folder.mkdir(exist_ok=True)
    return LAYOUTS[layout](folder)


def test_a_repository_with_one_autoencoder_at_its_root(hub, tmp_path):
    foreign = made(tmp_path, "saelens legacy")
    shutil.copytree(foreign.path, hub.snapshot("owner/gpt2-sae"), dirs_exist_ok=True)
    x = torch.randn(5, 12)
    assert torch.equal(load_sae("owner/gpt2-sae").encode(x), load_sae(foreign.path).encode(x))


def test_a_folder_of_a_repository_and_the_one_that_there_is(hub, tmp_path):
    foreign = made(tmp_path, "gemma scope 1")
    files = hub.snapshot("google/gemma-scope-2b-pt-res")
    folder = "layer_20/width_16k/average_l0_71"
    shutil.copytree(foreign.path, files / folder)
    for sae in (
        load_sae("google/gemma-scope-2b-pt-res", subfolder=folder),
        load_sae("google/gemma-scope-2b-pt-res"),
        load_sae("google/gemma-scope-2b-pt-res", subfolder=f"{folder}/params.npz"),
    ):
        assert sae.provenance["source"]["name"].startswith(f"google/gemma-scope-2b-pt-res/{folder}")
        assert sae.provenance["hook_point"] == "layers.20"


def test_several_autoencoders_are_listed(hub, tmp_path):
    foreign = made(tmp_path, "sparsify, old")
    files = hub.snapshot("EleutherAI/sae-pythia")
    for layer in range(3):
        shutil.copytree(foreign.path, files / f"layers.{layer}")
    with pytest.raises(CheckpointError, match=r"holds 3 autoencoders. Give subfolder, one of: 'layers.0', 'layers.1'"):
        load_sae("EleutherAI/sae-pythia")
    assert load_sae("EleutherAI/sae-pythia", subfolder="layers.1").provenance["hook_point"] == "layers.1"
    with pytest.raises(CheckpointError, match=r"has no 'layers.9'. Folders with an autoencoder: layers.0, layers.1"):
        load_sae("EleutherAI/sae-pythia", subfolder="layers.9")


def test_files_that_are_autoencoders_by_themselves(hub, tmp_path):
    foreign = made(tmp_path, "qwen scope")
    repo = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_9"
    files = hub.snapshot(repo)
    for layer in (0, 1):
        shutil.copy(foreign.path, files / f"layer{layer}.sae.pt")
    sae = load_sae(repo, subfolder="layer1.sae.pt")
    assert sae.config.sparsity == sk.TopK(k=9)  # k is in the repository's name alone
    assert sae.provenance["hook_point"] == "layers.1"
    with pytest.raises(CheckpointError, match=r"one of: 'layer0.sae.pt', 'layer1.sae.pt'"):
        load_sae(repo)


def test_a_revision_is_another_snapshot(hub, tmp_path):
    first, second = made(tmp_path, "saelens legacy"), LAYOUTS["sparsify, old"](tmp_path)
    shutil.copytree(first.path, hub.snapshot("owner/sae"), dirs_exist_ok=True)
    shutil.copytree(second.path, hub.snapshot("owner/sae", "v2", "f" * 40), dirs_exist_ok=True)
    assert load_sae("owner/sae").provenance["source"]["format"] == "saelens"
    assert load_sae("owner/sae", revision="v2").provenance["source"]["format"] == "sparsify"


def test_what_is_not_there_is_one_line(hub, capsys):
    with pytest.raises(CheckpointError, match="The hub gave nothing for owner/missing"):
        load_sae("owner/missing")
    assert main(["convert", "owner/missing", "--out", "never"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("never").exists()


class ConnectError(Exception):
    """What the network's package raises, which is no OSError."""

    __module__ = "httpx"


def test_a_network_that_is_down_leaves_the_cache(hub, tmp_path, monkeypatch):
    def refuses(*_: Any, **__: Any) -> None:
        raise ConnectError("[Errno 111] Connection refused")

    foreign = made(tmp_path, "saelens legacy")
    shutil.copytree(foreign.path, hub.snapshot("owner/gpt2-sae"), dirs_exist_ok=True)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuses)
    downloads = huggingface_hub.snapshot_download
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: downloads(*a, **{**k, "local_files_only": True})
    )
    assert load_sae("owner/gpt2-sae").config.d_in == 12
    with pytest.raises(CheckpointError, match=r"The hub gave nothing for owner/missing: \[Errno 111\]"):
        load_sae("owner/missing")


class CaughtUpload:
    """Stands for HfApi: keeps what would have gone to the hub in a snapshot of the cache."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.calls = hub, []

    def __call__(self, token: str | None = None) -> "CaughtUpload":
        return self

    def create_repo(self, **options: Any) -> None:
        self.calls.append(("create_repo", options))

    def upload_folder(self, *, folder_path: Path, path_in_repo: str | None, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        target = self.hub.snapshot(options["repo_id"]) / (path_in_repo or "")
        shutil.copytree(folder_path, target, dirs_exist_ok=True)


@pytest.fixture
def upload(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> CaughtUpload:
    caught = CaughtUpload(hub)
    monkeypatch.setattr(huggingface_hub, "HfApi", caught)
    return caught


def small(provenance: dict[str, Any] | None = None) -> sk.SparseAutoencoder:
    sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=12, d_sae=40, sparsity=sk.TopK(k=4)))
    sae.set_input_moments_(torch.randn(12), 20.0)
    sae.n_tokens_seen.fill_(2_000_000)
    sae.provenance = provenance
    return sae


PROVENANCE = {"backbone": {"spec": "HuggingFaceTB/SmolLM2-135M"}, "hook_point": "layers.15", "store_hash": "abc"}
METRICS = {
    "kind": "Evaluation",
    "schema": 1,
    "headline": {"l0": 31.25, "fvu": 0.0825, "dead_share": 0.01, "ce_recovered_zero": None},
    "data": {"n_tokens": 50_000, "n_documents": 321, "held_out_share": 0.05},
}


@pytest.mark.parametrize("format", ["saekit", "saelens", "sparsify"])
def test_what_is_pushed_can_be_loaded_by_its_id(format, upload):
    sae, x = small(PROVENANCE), torch.randn(9, 12)
    address = push_to_hub(sae, "somebody/my-sae", format=format, metrics=METRICS, private=False)
    assert address == "https://huggingface.co/somebody/my-sae"
    again = load_sae("somebody/my-sae")
    assert torch.allclose(again.encode(x), sae.encode(x), atol=1e-5)
    assert torch.allclose(again(x), sae(x), atol=1e-5)
    assert upload.calls[0] == ("create_repo", {"repo_id": "somebody/my-sae", "private": False, "exist_ok": True})


def test_the_model_card_states_metrics_and_recipe(upload, hub):
    recipe = {"config": {"lr": 0.0003, "batch_size": 4096}}
    push_to_hub(small(PROVENANCE), "somebody/my-sae", metrics=METRICS, recipe=recipe, license="mit")
    card = (hub.snapshot("somebody/my-sae") / "README.md").read_text()
    header, body = card.split("---\n")[1:]
    assert header.splitlines() == [
        "library_name: saekit",
        "license: mit",
        'base_model: "HuggingFaceTB/SmolLM2-135M"',
        "tags:",
        "- sparse-autoencoder",
        "- interpretability",
    ]
    for line in (
        "| l0 | 31.25 |",
        "| fvu | 0.0825 |",
        "On 50,000 tokens of 321 documents, held out of training.",
        "| Autoencoder | SparseAutoencoder 12 -> 40, TopK |",
        "| Hook point | layers.15 |",
        "| Training tokens | 2,000,000 |",
        'sae = sk.load_sae("somebody/my-sae")',
        '"lr": 0.0003',
        '"store_hash": "abc"',
        '"k": 4',
    ):
        assert line in body, line
    assert "ce_recovered_zero" not in body


def test_a_card_says_what_is_not_known(upload, hub):
    push_to_hub(small(), "somebody/my-sae", path_in_repo="layers.3")
    card = (hub.snapshot("somebody/my-sae") / "layers.3" / "README.md").read_text()
    assert "| Model | not recorded |" in card
    assert "Not measured." in card
    assert "How it was trained is not recorded here." in card
    assert 'load_sae("somebody/my-sae", subfolder="layers.3")' in card
    assert load_sae("somebody/my-sae", subfolder="layers.3").config.d_sae == 40


def test_nothing_is_uploaded_when_the_format_cannot_hold_it(upload):
    sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=12, d_sae=40, sparsity=sk.Relu()))
    with pytest.raises(ConfigError, match="its latents are TopK"):
        push_to_hub(sae, "somebody/my-sae", format="sparsify")
    with pytest.raises(ConfigError, match="'my-sae' is no id on the hub"):
        push_to_hub(sae, "my-sae")
    assert upload.calls == []


def test_a_refusal_of_the_hub_is_one_line(upload, monkeypatch):
    def refuses(**_: Any) -> None:
        raise PermissionError("403 Forbidden:\n you may not write here")

    monkeypatch.setattr(upload, "create_repo", refuses)
    with pytest.raises(CheckpointError, match="The hub gave nothing for somebody/my-sae: 403 Forbidden: you may not"):
        push_to_hub(small(), "somebody/my-sae")


def test_the_job_converts_and_says_what_was_folded(tmp_path, capsys):
    run = tmp_path / "run"
    sae = small(PROVENANCE)
    sae.save(run / "checkpoint")
    out = tmp_path / "for-saelens"
    assert main(["convert", str(run), "--to", "saelens", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("SparseAutoencoder(12 -> 40, TopK(k=4")
    assert printed[1].startswith("- Folded the input mean into b_dec and the input scale")
    assert printed[-1] == str(out)
    assert json.loads((out / "cfg.json").read_text())["architecture"] == "topk"
    back = tmp_path / "ours"
    assert main(["convert", str(out), "--from", "saelens", "--out", str(back)]) == 0
    x = torch.randn(6, 12)
    assert torch.allclose(sk.SparseAutoencoder.load(back)(x), sae(x), atol=1e-5)


def test_the_job_pushes_a_run_with_its_metrics(tmp_path, upload, hub, capsys):
    run = tmp_path / "run"
    small(PROVENANCE).save(run / "checkpoint")
    write_json(run / "metrics.json", METRICS)
    write_json(run / "run.json", {"fit": {"lr": 0.125}})
    assert main(["convert", str(run), "--push", "somebody/my-sae"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/somebody/my-sae"
    card = (hub.snapshot("somebody/my-sae") / "README.md").read_text()
    assert "| fvu | 0.0825 |" in card
    assert '"lr": 0.125' in card
    assert upload.calls[0][1]["private"] is True


def test_the_job_takes_what_a_file_leaves_out(tmp_path, capsys):
    import numpy as np

    foreign = made(tmp_path, "saev, with moments")
    np.save(tmp_path / "mean.npy", foreign.options["input_mean"].numpy())
    words = ["--input-mean", str(tmp_path / "mean.npy"), "--input-scale", str(foreign.options["input_scale"])]
    assert main(["convert", str(foreign.path), *words, "--out", str(tmp_path / "ours")]) == 0
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    latents = sk.SparseAutoencoder.load(tmp_path / "ours").encode(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(latents, foreign.define(x.astype(np.float64))[0], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["there"], "Nothing to write: give --out FOLDER, or --push OWNER/NAME."),
        (["there", "--out", "x", "--to", "openai"], "'openai' can be read and not written. Writes: saekit, saelens"),
        (["there", "--out", "x", "--from", "saelense"], "no format that saekit reads. Closest: 'saelens'"),
        (["there", "--out", "x"], "there does not exist"),
    ],
)
def test_mistakes_in_the_jobs_words_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
