"""The data of the classic demonstrations: digits, pictures of clothes, documents; stand-ins for smoke runs."""

import functools
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekit.cache import made_once
from saekit.errors import InputError, require

if TYPE_CHECKING:
    from common import Demo

FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DOCUMENT_SECTIONS = (
    "admin",
    "database",
    "editors",
    "electronics",
    "fonts",
    "games",
    "gnu-r",
    "graphics",
    "mail",
    "math",
    "net",
    "science",
    "sound",
    "text",
    "video",
    "web",
)
N_STEMS = 2000
MIN_WORDS = 8


class Split(NamedTuple):
    """Rows to train on and rows to judge by."""

    train: Tensor
    """float32 `[n d_in]`."""
    train_labels: Tensor
    """int64 `[n]`."""
    test: Tensor
    """float32 `[m d_in]`."""
    test_labels: Tensor
    """int64 `[m]`."""
    names: tuple[str, ...]
    """What the labels stand for."""


@functools.cache
def digits() -> Split:
    """scikit-learn's 1,797 handwritten digits (8 x 8, UCI, CC BY 4.0), divided by 16; 30 % to judge by."""
    datasets = require("sklearn.datasets", "classic")
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    rows, labels = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order], dtype=torch.int64)
    n_train = round(0.7 * len(rows))
    names = tuple(str(digit) for digit in range(10))
    return Split(rows[:n_train], labels[:n_train], rows[n_train:], labels[n_train:], names)


def fashion_mnist(demo: "Demo") -> Split:
    """Zalando's 60,000 + 10,000 grey pictures of clothes (28 x 28, MIT), divided by 255.

    Out of the Debian package dataset-fashion-mnist (31 MB): where it is not installed, it is downloaded with apt-get,
    unpacked and kept in saekit's cache; nothing is installed and no root needed. A smoke run sees digits, enlarged.
    """
    return _enlarged_digits() if demo.smoke else _fashion_mnist()


def debian_descriptions(demo: "Demo") -> tuple[Split, list[str]]:
    """Counts of the 2,000 most frequent stems in descriptions of Debian packages, labelled by section; the stems.

    One description per source package of 16 sections, with 8 or more of these stems; every fifth is kept to judge by.
    The texts are those of the package lists, written by Debian's maintainers under the packages' own licences; the
    lists (about 16 MB) come from the mirror that apt is set up with, into saekit's cache. A smoke run sees made-up
    documents of 4 topics.
    """
    return _made_up_documents() if demo.smoke else _debian_descriptions()


@functools.cache
def _fashion_mnist() -> Split:
    folder = FASHION_FOLDER
    if not folder.is_dir():
        folder = made_once("fashion-mnist-1", f"Fetching {FASHION_PACKAGE} (31 MB)", _make_fashion_mnist)

    def read(name: str, n_header: int) -> Tensor:
        with gzip.open(folder / name) as file:
            return torch.from_numpy(np.frombuffer(file.read(), dtype=np.uint8, offset=n_header).copy())

    def images(name: str) -> Tensor:
        return read(name, 16).reshape(-1, 784).float() / 255

    return Split(
        images("train-images-idx3-ubyte.gz"),
        read("train-labels-idx1-ubyte.gz", 8).long(),
        images("t10k-images-idx3-ubyte.gz"),
        read("t10k-labels-idx1-ubyte.gz", 8).long(),
        FASHION_CLASSES,
    )


def _make_fashion_mnist(folder: Path, scratch: Path) -> None:
    options: list[str] = []
    if _apt(["download", FASHION_PACKAGE], scratch):  # no package lists yet: fetch some of our own
        options = _own_lists(scratch)
        if reason := _apt([*options, "download", FASHION_PACKAGE], scratch):
            raise InputError(
                f"apt-get download {FASHION_PACKAGE} failed: {reason}. Install the package (Debian, Ubuntu), or put "
                f"its four .gz files into {FASHION_FOLDER}."
            )
    package = next(scratch.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(package), str(scratch / "tree")], check=True)
    for file in sorted((scratch / "tree" / FASHION_FOLDER.relative_to("/")).glob("*.gz")):
        shutil.copyfile(file, folder / file.name)


def _apt(words: list[str], folder: Path) -> str:
    """Run apt-get in `folder`; what went wrong, or nothing."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    done = subprocess.run(["apt-get", "-q", *words], cwd=folder, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "no reason was given").splitlines()[-1] if done.returncode else ""


def _own_lists(scratch: Path) -> list[str]:
    """apt's options for package lists in `scratch`, which are fetched: no root is needed."""
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    settings = {"Dir::State::lists": scratch / "lists", "Dir::Cache": scratch / "cache", "Acquire::Languages": "en"}
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    if reason := _apt([*options, "update"], scratch):
        raise InputError(f"apt-get update into saekit's cache failed: {reason}. Is there a network, and a Debian?")
    return options


@functools.cache
def _enlarged_digits() -> Split:
    def enlarge(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x.reshape(-1, 1, 8, 8), size=28, mode="bilinear").flatten(1)

    small = digits()
    return small._replace(
        train=enlarge(small.train[:400]),
        train_labels=small.train_labels[:400],
        test=enlarge(small.test[:200]),
        test_labels=small.test_labels[:200],
    )


@functools.cache
def _debian_descriptions() -> tuple[Split, list[str]]:
    path = made_once("debian-descriptions-1", "Fetching Debian's package lists (16 MB)", _make_descriptions)
    sections, texts = [], []
    seen: set[str] = set()
    with gzip.open(path / "descriptions.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            document = json.loads(line)
            if document["section"] in DOCUMENT_SECTIONS and document["source"] not in seen:
                seen.add(document["source"])
                sections.append(DOCUMENT_SECTIONS.index(document["section"]))
                texts.append(_stems(document["text"]))
    counts: dict[str, int] = {}
    for words in texts:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))[:N_STEMS]
    index = {word: i for i, word in enumerate(vocabulary)}
    rows = torch.zeros(len(texts), N_STEMS)
    for row, words in zip(rows, texts, strict=True):
        known = torch.tensor([index[word] for word in words if word in index], dtype=torch.int64)
        row += torch.bincount(known, minlength=N_STEMS)
    labels = torch.tensor(sections)
    kept = rows.sum(1) >= MIN_WORDS
    rows, labels = rows[kept], labels[kept]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return Split(rows[rest], labels[rest], rows[held], labels[held], DOCUMENT_SECTIONS), vocabulary


def _make_descriptions(folder: Path, scratch: Path) -> None:
    _own_lists(scratch)
    translations: dict[str, str] = {}
    for path in sorted((scratch / "lists").glob("*_Translation-en*")):
        for fields in _paragraphs(path):
            translations[fields["Description-md5"]] = fields.get("Description-en", "")
    n_written, seen = 0, set()
    with gzip.open(folder / "descriptions.jsonl.gz", "wt", encoding="utf-8") as file:
        for path in sorted((scratch / "lists").glob("*_Packages*")):
            for fields in _paragraphs(path):
                digest = fields.get("Description-md5", "")
                if digest in seen or digest not in translations:
                    continue
                seen.add(digest)
                source = fields.get("Source", fields["Package"]).split(" ")[0]
                section = fields.get("Section", "").rpartition("/")[2]
                record = {"source": source, "section": section, "text": translations[digest]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                n_written += 1
    if n_written < 20_000:
        raise InputError(
            f"The package lists of apt's mirror hold {n_written} descriptions; about 60,000 were expected."
        )


def _paragraphs(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a package list, however it is compressed."""
    text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True).stdout
    for paragraph in text.decode("utf-8", "replace").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith(" "):
                fields[name] += "\n" + line[1:]
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _stems(text: str) -> list[str]:
    """Words of three letters and more, without common ones, cut to a crude stem."""
    common = require("sklearn.feature_extraction.text", "classic").ENGLISH_STOP_WORDS
    words = [word for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in common]
    return [re.sub(r"(?<=[a-z]{4})(?:ings?|ies|ied|es|ed|ly|s|e|y)$", "", word) for word in words]


@functools.cache
def _made_up_documents() -> tuple[Split, list[str]]:
    generator = torch.Generator().manual_seed(0)
    topics = torch.rand(4, N_STEMS, generator=generator) ** 8
    labels = torch.randint(4, (400,), generator=generator)
    draws = torch.multinomial(topics[labels], 30, replacement=True, generator=generator)
    rows = torch.zeros(400, N_STEMS).scatter_add_(1, draws, torch.ones(400, 30))
    words = [f"word{i}" for i in range(N_STEMS)]
    return Split(rows[:300], labels[:300], rows[300:], labels[300:], tuple("abcd")), words
