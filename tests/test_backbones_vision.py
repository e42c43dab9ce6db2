"""Vision transformers: what the model sees of an image and where that was, registers, heads, and bad images."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from saekit.backbones import ImageBackbone, ImageTokens, load_backbone
from saekit.backbones.images import thumbnail, upright_rgb
from saekit.backbones.third_party import import_timm, import_transformers
from saekit.backbones.timm_vision import TimmViT
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.inputs import ImageInput, SkipLog
from saekit.store.examples import Example

SIZES = [(48, 40), (40, 75), (200, 31), (32, 32), (9, 14)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make_once(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny.make(family, made[family])
        return made[family]

    return make_once


@pytest.fixture(scope="module")
def load(folder: Callable[[str], Path]) -> Callable[[str], ImageBackbone]:
    loaded: dict[str, ImageBackbone] = {}

    def load_once(family: str) -> ImageBackbone:
        if family not in loaded:
            backbone = load_backbone(tiny.make(family, folder(family)), device="cpu")
            assert isinstance(backbone, ImageBackbone)
            loaded[family] = backbone
        return loaded[family]

    return load_once


def see(backbone: ImageBackbone, *images: Any, **options: Any) -> tuple[list[Example], SkipLog]:
    skipped = SkipLog()
    inputs = [ImageInput(id=f"i{i}", load=load, label="sea", caption="a line") for i, load in enumerate(images)]
    return list(backbone.examples(inputs, ImageTokens(**options), skipped)), skipped


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "dinov2"])
@pytest.mark.parametrize("size", SIZES)
def test_the_model_sees_what_its_own_processor_makes(
    family: str, size: tuple[int, int], folder: Callable[[str], Path], load: Callable[[str], ImageBackbone]
) -> None:
    picture = tiny.image(*size)
    load(family)
    processor = import_transformers().AutoImageProcessor.from_pretrained(folder(family), backend="pil")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    ((example,), _) = see(load(family), picture)
    torch.testing.assert_close(torch.from_numpy(example.pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(480, 400), (170, 300)])
def test_a_timm_model_sees_what_timms_transform_makes(
    size: tuple[int, int], load: Callable[[str], ImageBackbone]
) -> None:
    backbone, timm = load("timm"), import_timm()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone.model), is_training=False)
    picture = tiny.image(*size)
    ((example,), _) = see(backbone, picture)
    torch.testing.assert_close(torch.from_numpy(example.pixels), transform(picture), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tiny.VISION)
@pytest.mark.parametrize("size", [(480, 400), (333, 777), (900, 500)])
@pytest.mark.parametrize("patch", [0, 5, 10])
def test_the_recorded_crop_finds_a_marked_patch_again(
    family: str, size: tuple[int, int], patch: int, load: Callable[[str], ImageBackbone]
) -> None:
    """Paint, on the original, exactly the rectangle that the geometry gives for one patch; only that patch changes."""
    backbone = load(family)
    plain = Image.new("RGB", size, "black")
    ((example,), _) = see(backbone, plain)
    geometry = example.geometry
    rows, columns = geometry.grid
    left, top, right, bottom = geometry.crop
    row, column = divmod(patch, columns)
    box = [
        round(left + column * (right - left) / columns),
        round(top + row * (bottom - top) / rows),
        round(left + (column + 1) * (right - left) / columns) - 1,
        round(top + (row + 1) * (bottom - top) / rows) - 1,
    ]
    marked = plain.copy()
    marked.paste((255, 255, 255), (box[0], box[1], box[2] + 1, box[3] + 1))
    ((shown,), _) = see(backbone, marked)
    side = backbone.patch_size
    light = np.abs(shown.pixels - example.pixels).mean(0)[: rows * side, : columns * side]
    light = light.reshape(rows, side, columns, side).mean((1, 3))
    assert np.unravel_index(light.argmax(), light.shape) == (row, column)
    assert light[row, column] > 0.8 * light.sum()


def test_a_squashing_processor_shows_all_of_the_image_and_a_cropping_one_its_middle(
    load: Callable[[str], ImageBackbone],
) -> None:
    picture = tiny.image(200, 100)
    ((squashed,), _) = see(load("vit"), picture)
    assert squashed.geometry.crop == (0, 0, 200, 100)
    ((cropped,), _) = see(load("clip"), picture)
    assert cropped.geometry.crop == pytest.approx((50, 0, 150, 100))
    ((inner,), _) = see(load("dinov2"), picture)
    assert inner.geometry.crop == pytest.approx((100 - 400 / 9, 50 - 400 / 9, 100 + 400 / 9, 50 + 400 / 9))
    assert (squashed.geometry.width, squashed.geometry.height) == (200, 100)
    assert squashed.geometry.grid == (4, 4)


def test_a_margin_that_no_patch_covers_is_not_in_the_crop(load: Callable[[str], ImageBackbone], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=36, patch_size=8
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 36, "width": 36}).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), device="cpu")
    assert isinstance(backbone, ImageBackbone)
    ((example,), _) = see(backbone, tiny.image(360, 360))
    assert example.geometry.grid == (4, 4)
    assert example.geometry.crop == pytest.approx((0, 0, 320, 320))


def test_label_and_caption_and_id_are_kept(load: Callable[[str], ImageBackbone]) -> None:
    ((example,), _) = see(load("vit"), tiny.image())
    assert (example.document, example.label, example.caption) == ("i0", "sea", "a line")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 100), (100, 100, 100)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (8, 8), (10, 255)), (10, 10, 10)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("RGB", (8, 8), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((8, 8), 32896, np.uint16)), (128, 128, 128)),
    ],
    ids=["grey", "binary", "LA clear", "LA opaque", "RGBA clear", "RGBA veil", "palette", "CMYK", "16 bit"],
)
def test_every_mode_becomes_rgb_on_white(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert upright_rgb(image).mode == "RGB"
    assert upright_rgb(image).getpixel((3, 3)) == expected


def test_16_bit_and_transparent_palette_files_are_read_with_their_range(load: Callable[[str], ImageBackbone]) -> None:
    deep = encoded(Image.fromarray(np.full((40, 40), 65535, np.uint16)))
    clear = encoded(Image.new("P", (40, 40), 0), transparency=0)
    examples, skipped = see(load("vit"), deep, clear)
    assert skipped.count == 0
    for example in examples:
        assert np.allclose(example.pixels, 1)  # white, with the mean and deviation of 0.5


def test_an_image_of_32_bits_is_skipped_with_the_reason(load: Callable[[str], ImageBackbone]) -> None:
    examples, skipped = see(load("vit"), Image.new("F", (40, 40)), tiny.image())
    assert [example.document for example in examples] == ["i1"]
    assert list(skipped.reasons) == ["image of mode 'F' (32 bits), whose range is unknown"]


def test_the_orientation_a_camera_wrote_is_applied(load: Callable[[str], ImageBackbone]) -> None:
    picture = tiny.image(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by a quarter
    turned = encoded(picture, "PNG", exif=exif)
    ((example,), _) = see(load("vit"), turned)
    ((upright,), _) = see(load("vit"), picture.transpose(Image.Transpose.ROTATE_270))
    assert (example.geometry.width, example.geometry.height) == (40, 60)
    assert np.array_equal(example.pixels, upright.pixels)
    assert Image.open(io.BytesIO(example.thumbnail)).size == (40, 60)


def test_corrupt_images_are_skipped_and_counted_in_their_place(
    load: Callable[[str], ImageBackbone], tmp_path: Path
) -> None:
    whole = encoded(tiny.image(100, 100), "JPEG")
    (tmp_path / "empty.png").write_bytes(b"")
    examples, skipped = see(
        load("vit"), whole, b"not an image", whole[:700], tmp_path / "empty.png", tmp_path / "absent.png", whole
    )
    assert [example.document for example in examples] == ["i0", "i5"]
    assert skipped.reasons == {"not a readable image": 4}
    assert [id for id, _ in skipped.first] == ["i1", "i2", "i3", "i4"]


def test_an_absurdly_long_image_is_skipped(load: Callable[[str], ImageBackbone]) -> None:
    examples, skipped = see(load("clip"), Image.new("RGB", (20000, 10)))
    assert examples == []
    assert skipped.reasons == {"one side over 100 times the other": 1}


def test_a_thumbnail_is_the_whole_image_and_never_larger_than_it() -> None:
    for size, expected in (((600, 300), (256, 128)), ((300, 900), (85, 256)), ((40, 30), (40, 30))):
        small = Image.open(io.BytesIO(thumbnail(tiny.image(*size), 256)))
        assert small.format == "WEBP"
        assert small.size == expected


def test_thumbnails_do_not_change_the_picture_they_are_made_from() -> None:
    picture = tiny.image(600, 300)
    thumbnail(picture, 64)
    assert picture.size == (600, 300)


@pytest.mark.parametrize("family", ["dinov2_registers", "dinov3"])
def test_registers_and_the_class_token_are_prefix_and_never_patches(
    family: str, load: Callable[[str], ImageBackbone]
) -> None:
    backbone = load(family)
    assert backbone.layout.prefix == ("cls", "register_0", "register_1", "register_2", "register_3")
    kept = {keep: see(backbone, tiny.image(), keep=keep)[0][0].kept.tolist() for keep in (("patch",), ("register",))}
    assert kept["patch",] == list(range(5, 21))
    assert kept["register",] == [1, 2, 3, 4]
    ((example,), _) = see(backbone, tiny.image(), keep=("patch", "cls"))
    assert example.kept.tolist() == [0, *range(5, 21)]
    assert backbone.n_tokens(example) == 21


def test_a_timm_model_with_a_class_token_and_four_registers() -> None:
    model = import_timm().create_model("test_vit", reg_tokens=4, class_token=True)
    with torch.no_grad():
        model.reg_token.fill_(100)
    backbone = TimmViT("timm:test_vit", model)
    assert backbone.layout.prefix == ("cls", "register_0", "register_1", "register_2", "register_3")
    ((example,), _) = see(backbone, tiny.image(), keep=("cls", "register", "patch"))
    ((_, acts),) = backbone.activations([example], ["layers.0:input"], batch_size=1)
    norms = acts["layers.0:input"].norm(dim=1)
    assert norms.topk(4).indices.sort().values.tolist() == [1, 2, 3, 4]
    assert len(example.kept) == 1 + 4 + 100


def test_a_timm_model_with_registers_and_no_class_token(load: Callable[[str], ImageBackbone]) -> None:
    assert load("timm_registers").layout.prefix == ("register_0",)
    with pytest.raises(ConfigError, match=r"has no cls tokens; it has \['patch', 'register'\]"):
        see(load("timm_registers"), tiny.image(), keep=("cls",))


@pytest.mark.parametrize("family", ["vit", "clip", "dinov2", "dinov3", "timm"])
def test_another_image_size_gives_another_grid_of_the_same_part(
    family: str, load: Callable[[str], ImageBackbone]
) -> None:
    backbone, picture = load(family), tiny.image(300, 200)
    side = 2 * backbone.input.size
    ((small,), _) = see(backbone, picture)
    ((large,), _) = see(backbone, picture, image_size=side)
    assert large.pixels.shape == (3, side, side)
    assert large.geometry.grid == tuple(2 * n for n in small.geometry.grid)
    assert large.geometry.crop == pytest.approx(small.geometry.crop, abs=2)
    ((_, acts),) = backbone.activations([large], ["layers.1"], batch_size=1)
    assert len(acts["layers.1"]) == len(large.kept) == np.prod(large.geometry.grid)


def test_an_image_size_that_patches_do_not_tile_is_refused_with_one_that_they_do(
    load: Callable[[str], ImageBackbone],
) -> None:
    with pytest.raises(ConfigError, match="image_size=45 is not a multiple .* 8; take 48"):
        see(load("vit"), tiny.image(), image_size=45)


def test_dinov2_uses_its_own_interpolation_of_positions(load: Callable[[str], ImageBackbone]) -> None:
    """The checkpoint has positions for 64 pixels and is shown 32; Dinov2Model interpolates by itself."""
    backbone = load("dinov2")
    ((example,), _) = see(backbone, tiny.image(), keep=("cls", "patch"))
    ((_, acts),) = backbone.activations([example], ["layers.0:input"], batch_size=1)
    with torch.inference_mode():
        own = backbone.model(pixel_values=torch.from_numpy(example.pixels)[None], output_hidden_states=True)
    assert torch.equal(acts["layers.0:input"], own.hidden_states[0][0])


def test_class_logits_come_from_checkpoints_with_a_head(load: Callable[[str], ImageBackbone]) -> None:
    for family, n_classes in (("vit", 3), ("timm", 1000)):
        examples, _ = see(load(family), tiny.image(seed=1), tiny.image(seed=2))
        logits = load(family).logits(examples)
        assert logits.shape == (2, n_classes)
        assert not torch.allclose(logits[0], logits[1])
    examples, _ = see(load("clip"), tiny.image())
    with pytest.raises(BackboneError, match="without a classification head"):
        load("clip").logits(examples)


def test_stored_examples_without_pixels_are_refused(load: Callable[[str], ImageBackbone]) -> None:
    ((example,), _) = see(load("vit"), tiny.image())
    bare = Example(document="i0", kept=example.kept, geometry=example.geometry)
    with pytest.raises(InputError, match="1 examples carry no pixels, first 'i0'"):
        list(load("vit").activations([bare], ["layers.0"], batch_size=1))


@pytest.mark.parametrize(
    ("field", "value"), [("keep", ()), ("keep", ("patches",)), ("image_size", 0), ("thumbnail_size", 3)]
)
def test_options_that_cannot_work_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"ImageTokens.{field}="):
        ImageTokens(**{field: value})  # type: ignore[arg-type]


def test_packing_images_is_refused(load: Callable[[str], ImageBackbone]) -> None:
    examples, _ = see(load("vit"), tiny.image())
    with pytest.raises(ConfigError, match="not packed"):
        list(load("vit").activations(examples, ["layers.0"], batch_size=1, pack=True))


def test_a_checkpoint_that_does_not_say_how_images_are_prepared_is_refused(
    folder: Callable[[str], Path], load: Callable[[str], ImageBackbone], tmp_path: Path
) -> None:
    load("vit")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder("vit") / name, tmp_path)
    with pytest.raises(BackboneError, match="preprocessor_config.json"):
        load_backbone(str(tmp_path), device="cpu")


def test_timm_names_files_and_architectures_that_do_not_fit_say_so(
    tmp_path: Path, load: Callable[[str], ImageBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackboneError, match="no architecture 'vit_smal_patch16_224'. Closest: 'vit_small_patch16_224'"):
        load_backbone("timm:vit_smal_patch16_224")
    with pytest.raises(BackboneError, match=r"absent\.safetensors does not exist"):
        load_backbone(f"timm:test_vit@{tmp_path / 'absent.safetensors'}")
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing")
    with pytest.raises(BackboneError, match="is not a safetensors file"):
        load_backbone(f"timm:test_vit@{tmp_path / 'wrong.safetensors'}")
    other = load("timm").spec.split("@")[1]
    with pytest.raises(BackboneError, match=r"does not fit the architecture: .* missing"):
        load_backbone(f"timm:test_vit2@{other}")
    from safetensors.torch import save_file

    save_file(import_timm().create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(BackboneError, match="not a vision transformer"):
        load_backbone(f"timm:test_resnet@{tmp_path / 'resnet.safetensors'}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("saekit.backbones.timm_vision.hub_is_reachable", lambda: False)
    with pytest.raises(BackboneError, match=r"cannot be reached.*timm:test_vit@/path"):
        load_backbone("timm:test_vit")
