"""What a tokenizer's ids are: the bytes of each, and the tokens that a model expects around a text."""

import functools
import json
import re
from typing import Any

from saekit.errors import ConfigError, closest

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>$")


def vocabulary_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """The bytes that each of `size` ids stands for, so that joining them gives readable UTF-8 text.

    The spelling of the vocabulary is undone: the byte alphabet of byte-level BPE, the word mark and the `<0xAB>` bytes
    of SentencePiece, the `##` of WordPiece (whose tokens get a leading space when they begin a word). Ids without a
    token, which pad some models' tables, are spelled `<id>`.
    """
    spelled = {index: token for token, index in tokenizer.get_vocab().items()}
    literal = set(tokenizer.get_added_vocab().values())
    style = _style(tokenizer)
    return [
        f"<{index}>".encode()
        if index not in spelled
        else spelled[index].encode()
        if index in literal
        else _token_bytes(spelled[index], style)
        for index in range(size)
    ]


def front_token(tokenizer: Any, prefix: str) -> int | None:
    """Id of the token put in front of every text of a causal model; None for none.

    "auto" is the token that the tokenizer itself puts there; where it puts none, `<|endoftext|>` if the vocabulary has
    it (what these models saw between documents, even when `bos_token` names a chat token), else `bos_token`, else none.
    Raises `ConfigError` for a token that the vocabulary does not have.
    """
    if prefix == "none":
        return None
    vocabulary = tokenizer.get_vocab()  # slow on large vocabularies: not for a loop
    if prefix != "auto":
        if prefix not in vocabulary:
            near = closest(prefix, tokenizer.all_special_tokens or vocabulary)
            raise ConfigError(f"prefix={prefix!r} is not one token of this model's vocabulary. Closest: {near}")
        return int(vocabulary[prefix])
    plain, dressed = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if len(dressed) > len(plain) and dressed[0] != plain[0]:
        return int(dressed[0])
    for token in ("<|endoftext|>", tokenizer.bos_token):
        if token in vocabulary:
            return int(vocabulary[token])
    return None


def _style(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "sentencepiece"
    pipeline = json.loads(backend.to_str())
    kinds = set(_kinds([pipeline.get("pre_tokenizer"), pipeline.get("decoder"), pipeline.get("model", {}).get("type")]))
    if "ByteLevel" in kinds:
        return "byte-level"
    return "wordpiece" if "WordPiece" in kinds else "sentencepiece"


def _kinds(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [str(part.get("type")), *(kind for value in part.values() for kind in _kinds(value))]
    if isinstance(part, list):
        return [kind for value in part for kind in _kinds(value)]
    return [part] if isinstance(part, str) else []


def _token_bytes(token: str, style: str) -> bytes:
    if style == "byte-level":
        alphabet = _byte_alphabet()
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode()
    if style == "wordpiece":
        return (token[2:] if token.startswith("##") else f" {token}").encode()
    if match := _BYTE_FALLBACK.match(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable Latin-1 bytes stand for themselves, others for U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
