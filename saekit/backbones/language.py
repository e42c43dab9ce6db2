"""Language models of Hugging Face Transformers: causal and encoder ones, from the hub, a folder or a GGUF file."""

import inspect
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.backbones.base import Backbone, Batch, Location, only
from saekit.backbones.options import ImageTokens, TextWindows
from saekit.backbones.pretrained import load_config, load_model, load_tokenizer
from saekit.backbones.rows import by_length, first_fit, packed_rows, padded_rows
from saekit.backbones.tokens import front_token, vocabulary_bytes
from saekit.backbones.windows import Windows, why_unreadable
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store.examples import Example, TokenLayout

_DOCUMENTS_AT_ONCE = 64  # tokenized together: the tokenizer works on several cores


class TextBackbone(Backbone):
    """A Transformers language model and its tokenizer; a document becomes windows of tokens."""

    kind: ClassVar[str] = "text"

    model: Any  # a transformers.PreTrainedModel, which has more than nn.Module

    def __init__(self, spec: str, model: Any, tokenizer: Any) -> None:
        self.config = model.config
        self.tokenizer = tokenizer
        super().__init__(spec, model, getattr(self.config.get_text_config(), "num_hidden_layers", None))
        self.max_context = _max_context(model, tokenizer)
        """Longest window the model has positions for; None where it has no limit."""

    @classmethod
    def load(cls, spec: str, location: Location, dtype: str | None, device: torch.device) -> "TextBackbone":
        config = load_config(location, spec)
        model = load_model(cls._auto_class(config), location, spec, config, dtype, device)
        return cls(spec, model, load_tokenizer(location, spec))

    @staticmethod
    @abstractmethod
    def _auto_class(config: Any) -> str:
        """The class of Transformers that reads such a checkpoint."""

    @abstractmethod
    def wrapping(self, options: TextWindows) -> tuple[list[int], list[int]]:
        """Token ids put before and after the tokens of every window."""

    def default_options(self) -> TextWindows:
        return TextWindows(context_size=min(256, self.max_context or 256))

    def layout_for(self, options: TextWindows | ImageTokens) -> TokenLayout:
        front, _ = self.wrapping(self._check(options))
        return TokenLayout(content="token", prefix=(self._prefix_name,) if front else ())

    _prefix_name: ClassVar[str]

    def examples(
        self,
        inputs: Iterable[Document] | Iterable[ImageInput],
        options: TextWindows | ImageTokens,
        skipped: SkipLog,
    ) -> Iterator[Example]:
        chosen = self._check(options)
        front, back = self.wrapping(chosen)
        windows = Windows(
            options=chosen,
            front=np.array(front, dtype=np.int32),
            back=np.array(back, dtype=np.int32),
            special=np.array(sorted(set(self.tokenizer.all_special_ids)), dtype=np.int32),
        )
        documents = only(inputs, Document, self.spec)
        while chunk := list(itertools.islice(documents, _DOCUMENTS_AT_ONCE)):
            unreadable = [why_unreadable(document.text) for document in chunk]
            texts = [document.text for document, reason in zip(chunk, unreadable, strict=True) if reason is None]
            encoded = iter(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
            # What is skipped is logged between the examples before and after it: an interrupted run counts on that.
            for document, reason in zip(chunk, unreadable, strict=True):
                if reason is not None:
                    skipped.add(document.id, reason)
                    continue
                tokens = next(encoded)
                yield from (examples := windows.cut(document, tokens))
                if not examples:
                    short = len(tokens) < chosen.min_tokens
                    skipped.add(document.id, f"fewer than {chosen.min_tokens} tokens" if short else "no token to keep")

    def _check(self, options: TextWindows | ImageTokens) -> TextWindows:
        if not isinstance(options, TextWindows):
            raise ConfigError(f"{self.spec} reads texts; its options are TextWindows, not {type(options).__name__}.")
        if self.max_context is not None and options.context_size > self.max_context:
            raise ConfigError(
                f"TextWindows.context_size={options.context_size} exceeds the {self.max_context} positions of "
                f"{self.spec}. On the command line: --text.context-size {self.max_context}"
            )
        front, back = self.wrapping(options)
        room = options.context_size - len(front) - len(back)
        if room < options.min_tokens:
            raise ConfigError(
                f"TextWindows.context_size={options.context_size} leaves {room} tokens of text in a window, fewer than "
                f"min_tokens={options.min_tokens}; raise context_size or lower min_tokens."
            )
        return options

    def n_tokens(self, example: Example) -> int:
        return example.n_tokens

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text` as the model should see them: with its prefix, and for an encoder its end token."""
        front, back = self.wrapping(self.default_options())
        return [*front, *self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *back]

    def token_bytes(self) -> list[bytes]:
        """The bytes that every id of the model's vocabulary stands for; joined, they give readable UTF-8 text."""
        size = max(self.model.get_input_embeddings().weight.shape[0], len(self.tokenizer))
        return vocabulary_bytes(self.tokenizer, size)

    def logits(self, examples: Sequence[Example]) -> Float[Tensor, "batch token vocab"]:
        if self.model.get_output_embeddings() is None:
            raise BackboneError(f"{self.spec} is a checkpoint without a language modelling head; it has no logits.")
        batch = padded_rows(list(range(len(examples))), examples, self._pad_id)
        with torch.inference_mode():
            return self.model(**self._inputs(batch.inputs)).logits

    def preprocessing(self) -> dict[str, Any]:
        front, back = self.wrapping(self.default_options())
        names = self.tokenizer.convert_ids_to_tokens
        return {"front": names(front), "back": names(back), "max_context": self.max_context}

    def _batches(self, examples: Sequence[Example], batch_size: int, pack: bool) -> Iterator[Batch]:
        if pack:
            raise ConfigError(f"{self.spec} ({self.family}) cannot pack texts in one row; set pack=False.")
        order = by_length(examples)
        for start in range(0, len(order), batch_size):
            batch = padded_rows(order[start : start + batch_size], examples, self._pad_id)
            yield Batch(batch.indices, self._inputs(batch.inputs), batch.kept)

    def _inputs(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def _probe_inputs(self) -> dict[str, Any]:
        return self._inputs({"input_ids": torch.tensor([[0, 1, 2, 3]])})

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0


class CausalLM(TextBackbone):
    """A decoder that predicts the next token. In most of them the first position is an attention sink."""

    family: ClassVar[str] = "causal_lm"
    _prefix_name: ClassVar[str] = "bos"

    def __init__(self, spec: str, model: Any, tokenizer: Any) -> None:
        super().__init__(spec, model, tokenizer)
        self._packs: bool | None = None

    @staticmethod
    def _auto_class(config: Any) -> str:
        return "AutoModelForCausalLM"

    def wrapping(self, options: TextWindows) -> tuple[list[int], list[int]]:
        token = front_token(self.tokenizer, options.prefix)
        return ([] if token is None else [token]), []

    def unembedding(self) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " d_model"] | None]:
        """The matrix from the normalised residual stream to logits, and the gain of the final norm (None without one).

        The gain is what the norm multiplies by, whichever way the family spells it (Gemma stores it minus one).
        Raises `BackboneError` when the head does not read the residual stream directly.
        """
        head = self.model.get_output_embeddings()
        if head is None or head.weight.shape[1] != self.d_model:
            raise BackboneError(f"{self.spec} has no output matrix that reads its residual stream of {self.d_model}.")
        parent = self.model.get_submodule(self.blocks.path.rpartition(".")[0])
        norms = [
            module
            for name, module in parent.named_children()
            if "norm" in type(module).__name__.lower() and "embed" not in name
        ]
        return head.weight.T, _gain(norms[-1], self.d_model) if norms else None

    def generate(self, prompt: str, n_tokens: int) -> str:
        """The most likely continuation of `prompt`, at most `n_tokens` long; it ends early at an end token."""
        ids = self.encode_text(prompt)
        if self.max_context is not None and len(ids) + n_tokens > self.max_context:
            raise InputError(
                f"A prompt of {len(ids)} tokens and {n_tokens} new ones exceed the {self.max_context} positions of "
                f"{self.spec}."
            )
        ends = {self.tokenizer.eos_token_id, *np.atleast_1d(self.config.eos_token_id).tolist()}
        written: list[int] = []
        step, past = torch.tensor([ids], device=self.device), None
        with torch.inference_mode():
            while len(written) < n_tokens:
                output = self.model(input_ids=step, past_key_values=past, use_cache=True)
                past, token = output.past_key_values, int(output.logits[0, -1].argmax())
                if token in ends:
                    break
                written.append(token)
                step = torch.tensor([[token]], device=self.device)
        return str(self.tokenizer.decode(written, skip_special_tokens=True))

    def _inputs(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return {**super()._inputs(inputs), "use_cache": False}

    def _batches(self, examples: Sequence[Example], batch_size: int, pack: bool) -> Iterator[Batch]:
        if not pack:
            yield from super()._batches(examples, batch_size, pack)
            return
        self._check_packing()
        row_size = max((example.n_tokens for example in examples), default=0)
        for start in range(0, len(examples), batch_size):
            indices = list(range(start, min(start + batch_size, len(examples))))
            batch = packed_rows(first_fit(indices, examples, row_size), examples, self._pad_id)
            yield Batch(batch.indices, self._inputs(batch.inputs), batch.kept)

    def _check_packing(self) -> None:
        """Run two windows packed and alone; refuse when they differ, whatever the family promises."""
        if self._packs is None:
            self._packs = "position_ids" in inspect.signature(self.model.forward).parameters and self._packs_exactly()
        if not self._packs:
            raise ConfigError(
                f"{self.spec} ({type(self.model).__name__}) cannot keep packed texts apart; set pack=False."
            )

    def _packs_exactly(self) -> bool:
        kept = np.arange(12, dtype=np.int32)
        n_vocab = self.model.get_input_embeddings().weight.shape[0]
        pair = [Example(document="", token_ids=(kept + first) % n_vocab, kept=kept) for first in (0, 7)]
        point = self.resolve(f"layers.{self.n_layers - 1}")
        rows = []
        for batch in (packed_rows([[0, 1]], pair, self._pad_id), padded_rows([0, 1], pair, self._pad_id)):
            value = self._forward([point], self._inputs(batch.inputs))[point]
            rows.append(value.flatten(0, 1)[batch.kept.to(self.device)].float())
        error = (rows[0] - rows[1]).norm() / rows[1].norm()
        return bool(error < (1e-3 if self.dtype == torch.float32 else 0.1))


class EncoderLM(TextBackbone):
    """A bidirectional encoder such as BERT; windows stand between its own begin and end tokens."""

    family: ClassVar[str] = "encoder_lm"
    _prefix_name: ClassVar[str] = "cls"

    @staticmethod
    def _auto_class(config: Any) -> str:
        architecture = (getattr(config, "architectures", None) or [""])[0]
        return "AutoModelForMaskedLM" if architecture.endswith("ForMaskedLM") else "AutoModel"

    def wrapping(self, options: TextWindows) -> tuple[list[int], list[int]]:
        if options.prefix == "none":
            return [], []
        if options.prefix != "auto":
            raise ConfigError(f"prefix={options.prefix!r}: the encoder {self.spec} takes 'auto' or 'none'.")
        plain, dressed = (self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        start = next((i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain), 0)
        return list(dressed[:start]), list(dressed[start + len(plain) :])


def _max_context(model: Any, tokenizer: Any) -> int | None:
    config = model.config.get_text_config()
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < 10**9 else []
    if isinstance(positions := getattr(config, "max_position_embeddings", None), int) and positions > 0:
        # RoBERTa's position table starts after the row of its padding token.
        reserved = [
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        limits.append(positions - max(reserved, default=0))
    return min(limits, default=None)


def _gain(norm: nn.Module, width: int) -> Float[Tensor, " width"]:
    """What a norm without its bias multiplies a unit-variance, zero-mean input by."""
    weight: Tensor = next(norm.parameters())
    signs = torch.ones(width, dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1
    with torch.no_grad():
        return (norm(signs[None])[0] - norm(-signs[None])[0]).float() / 2 * signs.float()
