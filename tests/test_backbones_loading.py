"""Which class reads which checkpoint, imports beside a broken torchvision, and the job that lists hook points."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from torch import nn

from saekit.backbones.blocks import find_blocks
from saekit.backbones.load import family_of
from saekit.backbones.third_party import _imports, import_timm, import_transformers, make_torchvision_importable
from saekit.cli import main
from saekit.errors import BackboneError, MissingExtraError

FAMILIES = {
    "LlamaConfig": "causal_lm",
    "Qwen3Config": "causal_lm",
    "Gemma3Config": "causal_lm",  # also takes images
    "GPT2Config": "causal_lm",
    "OPTConfig": "causal_lm",
    "BertConfig": "encoder_lm",
    "XLMRobertaConfig": "encoder_lm",
    "ModernBertConfig": "encoder_lm",
    "DistilBertConfig": "encoder_lm",
    "ViTConfig": "transformers_vit",
    "DeiTConfig": "transformers_vit",
    "CLIPConfig": "transformers_vit",
    "CLIPVisionConfig": "transformers_vit",
    "SiglipConfig": "transformers_vit",
    "Dinov2WithRegistersConfig": "transformers_vit",
    "DINOv3ViTConfig": "transformers_vit",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_alone_tells_the_family(name: str) -> None:
    assert family_of(getattr(import_transformers(), name)(), "some/model") == FAMILIES[name]


@pytest.mark.parametrize("name", ["T5Config", "ResNetConfig", "Wav2Vec2Config"])
def test_other_models_are_refused_by_their_type(name: str) -> None:
    config = getattr(import_transformers(), name)()
    with pytest.raises(BackboneError, match=f"some/model is an? .*{config.model_type}"):
        family_of(config, "some/model")


def test_a_model_whose_layers_share_one_block_is_refused() -> None:
    block = nn.ModuleDict({"attn": nn.Linear(2, 2)})
    with pytest.raises(BackboneError, match="no list of 12 transformer blocks.*'blocks' of 1"):
        find_blocks(nn.ModuleDict({"blocks": nn.ModuleList([block])}), n_layers=12)


def test_the_largest_list_of_blocks_is_the_stream() -> None:
    def stack(width: int) -> nn.ModuleList:
        return nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(width, width)}) for _ in range(3)])

    found = find_blocks(
        nn.ModuleDict({"small": stack(2), "large": stack(5), "other": nn.ModuleList([nn.Linear(99, 9)])})
    )
    assert (found.path, found.n_layers, found.attention, found.mlp) == ("large", 3, "attn", None)


def test_a_half_imported_package_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_vision"
    package.mkdir()
    (package / "part.py").write_text("")
    (package / "__init__.py").write_text(
        "import broken_vision.part\nraise RuntimeError('operator broken_vision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert _imports("broken_vision") is None
    assert not [name for name in sys.modules if name.startswith("broken_vision")]
    (package / "__init__.py").write_text("raise RuntimeError('something else entirely')")
    with pytest.raises(RuntimeError, match="something else"):
        _imports("broken_vision")


def test_a_torchvision_without_its_operators_is_imported_all_the_same(tmp_path: Path) -> None:
    """A stand-in that fails as torchvision does when its compiled part does not load."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\n"
        "@torch.library.register_fake('torchvision::nms')\n"
        "def fake_nms(dets, scores, iou_threshold): ...\n"
        "WHOLE = True\n"
    )
    script = (
        "from saekit.backbones.third_party import make_torchvision_importable\n"
        "make_torchvision_importable()\n"
        "import torchvision; assert torchvision.WHOLE and torchvision.__file__.startswith(PATH)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; PATH = {str(tmp_path)!r}; sys.path.insert(0, PATH)\n{script}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm'.*pip install 'saekit\[vision\]'"):
        import_timm()


def test_a_torchvision_without_pillow_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    make_torchvision_importable.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'PIL'.*pip install 'saekit\[vision\]'"):
        make_torchvision_importable()


def test_the_hooks_job_lists_hook_points_with_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hooks", tiny.make("gpt2", tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "causal_lm, 2 layers, d_model 32" in printed
    assert "layers.1.attention     32  transformer.h.1.attn:output" in printed
    assert main(["hooks", str(tmp_path), "--modules"]) == 0
    assert "transformer.h.0.mlp.c_fc  Conv1D  128" in capsys.readouterr().out


def test_the_hooks_job_says_what_is_wrong_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hooks", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("BackboneError: ")
