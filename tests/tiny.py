"""Two-layer models of every family, made from a config and a seed in a fraction of a second, with real tokenizers.

`make("llama", folder)` writes a checkpoint and returns what `load_backbone` takes. The weights are random, so what the
models say means nothing; their shapes, hooks, masks and file formats are those of the real families.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saekit.backbones.third_party import import_timm, import_transformers

WIDTH, HEADS, LAYERS, CONTEXT, VOCABULARY = 32, 4, 2, 64, 400
IMAGE, PATCH = 32, 8

TEXT = """The tide goes out twice a day, and the harbour at low water is a field of mud and rope. A gull stands on every
post. Children walk between the boats with buckets; they look for crabs, for bottle glass, for a coin. At noon the
church bell rings twelve times and nobody counts. When the water comes back it comes quickly: first a line of foam, then
a brown sheet that lifts the smallest boats, then the whole harbour is afloat again and the gulls complain. The ferry
sails at two. It carries post, milk, three cars and, in August, more people than there are seats. From the deck one sees
the chapel, the school and the red roof of the inn. Prices rose by 4% in 2019; wages did not. "It was better before",
says Anna (74), who was not here before. def add(a, b): return a + b. Ça coûte 12 €, naïve café, Größe, 東京.
"""


def make(family: str, folder: Path, seed: int = 0) -> str:
    """Write the tiny checkpoint of a family of `FAMILIES` into `folder`; returns its spec for `load_backbone`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    return FAMILIES[family](folder)


def make_gguf(file: Path, folder: Path) -> str:
    """Write the tiny Llama of `folder` (made by `make`) as a GGUF file, in float32; returns its spec."""
    import gguf

    transformers = import_transformers()
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(3 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(list(range(VOCABULARY)))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        for projection, n_heads in (("q_proj", HEADS), ("k_proj", 2)):
            if projection in name:  # GGUF interleaves the two halves of each rotary head
                value = value.reshape(n_heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def image(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """An RGB picture of smooth colours that depend on the seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _llama(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
    )
    return _save(transformers.LlamaForCausalLM(config), _byte_level(), folder)


def _gpt2(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, **_ends(0)
    )
    return _save(transformers.GPT2LMHeadModel(config), _byte_level(), folder)


def _gpt_neox(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **_ends(0),
    )
    return _save(transformers.GPTNeoXForCausalLM(config), _byte_level(), folder)


def _gemma(folder: Path) -> str:
    """A SentencePiece vocabulary, a begin token that the tokenizer adds, and norms whose gain is stored minus one."""
    transformers = import_transformers()
    config = transformers.GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return _save(transformers.GemmaForCausalLM(config), _sentencepiece(), folder)


def _bloom(folder: Path) -> str:
    """Positions by ALiBi, which cannot be packed, and sublayers that add the residual stream themselves."""
    transformers = import_transformers()
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, **_ends(0), pad_token_id=0
    )
    return _save(transformers.BloomForCausalLM(config), _byte_level(), folder)


def _bert(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=CONTEXT,
    )
    return _save(transformers.BertForMaskedLM(config), _wordpiece(), folder)


def _vit(folder: Path) -> str:
    """With a classification head of three classes; images are squashed."""
    transformers = import_transformers()
    config = transformers.ViTConfig(**_vision(), num_labels=3)
    processor = transformers.ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}, resample=2)
    return _save(transformers.ViTForImageClassification(config), processor, folder)


def _clip(folder: Path) -> str:
    """Both towers, as published; only the image tower is read."""
    transformers = import_transformers()
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
    }
    config = transformers.CLIPConfig(vision_config=_vision(), text_config=text)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE}
    )
    return _save(transformers.CLIPModel(config), processor, folder)


def _siglip(folder: Path) -> str:
    transformers = import_transformers()
    processor = transformers.SiglipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    return _save(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_vision())), processor, folder)


def _dinov2(folder: Path) -> str:
    """Positions for a larger image than the processor gives, as in the published checkpoints."""
    transformers = import_transformers()
    config = transformers.Dinov2Config(**{**_vision(), "image_size": 2 * IMAGE}, mlp_ratio=2)
    return _save(_untied_scales(transformers.Dinov2Model(config)), _centre_crop(), folder)


def _dinov2_registers(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.Dinov2WithRegistersConfig(**_vision(), mlp_ratio=2, num_register_tokens=4)
    return _save(_untied_scales(transformers.Dinov2WithRegistersModel(config)), _centre_crop(), folder)


def _dinov3(folder: Path) -> str:
    transformers = import_transformers()
    config = transformers.DINOv3ViTConfig(**_vision(), num_register_tokens=4)
    processor = transformers.DINOv3ViTImageProcessor(size={"height": IMAGE, "width": IMAGE})
    return _save(_untied_scales(transformers.DINOv3ViTModel(config)), processor, folder)


def _timm(folder: Path) -> str:
    return _save_timm("test_vit", folder)


def _timm_registers(folder: Path) -> str:
    """A register and no class token."""
    return _save_timm("test_vit4", folder)


FAMILIES: dict[str, Callable[[Path], str]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gemma": _gemma,
    "bloom": _bloom,
    "bert": _bert,
    "vit": _vit,
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "dinov2_registers": _dinov2_registers,
    "dinov3": _dinov3,
    "timm": _timm,
    "timm_registers": _timm_registers,
}
CAUSAL = ("llama", "gpt2", "gpt_neox", "gemma", "bloom")
LANGUAGE = (*CAUSAL, "bert")
VISION = tuple(family for family in FAMILIES if family not in LANGUAGE)


def _ends(token: int) -> dict[str, int]:
    return {"bos_token_id": token, "eos_token_id": token}


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "image_size": IMAGE,
        "patch_size": PATCH,
    }


def _centre_crop() -> Any:
    """DINOv2's way: the shorter side to a little more than the crop."""
    return import_transformers().BitImageProcessor(
        size={"shortest_edge": IMAGE + 4},
        crop_size={"height": IMAGE, "width": IMAGE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def _untied_scales(model: torch.nn.Module) -> torch.nn.Module:
    """Layer scales and registers start equal or empty in these families; random ones tell more."""
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda1", "register_tokens")):
            torch.nn.init.normal_(parameter)
    return model


def _save(model: Any, companion: Any, folder: Path) -> str:
    """Save a model and its tokenizer or image processor."""
    model.save_pretrained(folder)
    companion.save_pretrained(folder)
    return str(folder)


def _save_timm(name: str, folder: Path) -> str:
    from safetensors.torch import save_file

    save_file(import_timm().create_model(name).state_dict(), folder / "model.safetensors")
    return f"timm:{name}@{folder / 'model.safetensors'}"


def _byte_level() -> Any:
    """Byte-level BPE in the manner of GPT-2; adds nothing by itself, and has a chat token for `bos_token`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return _wrap(tokenizer, bos_token="<|im_start|>", eos_token="<|endoftext|>")


def _sentencepiece() -> Any:
    """BPE with word marks and byte fallback, and a template that puts `<bos>` in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT.encode("ascii", "ignore").decode()], trainer)
    # The trainer takes bytes as special tokens only; in the published vocabularies they are ordinary ones.
    pipeline = json.loads(tokenizer.to_str())
    pipeline["added_tokens"] = [token for token in pipeline["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(pipeline))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return _wrap(tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _wrap(tokenizer, **names, mask_token="[MASK]")


def _wrap(tokenizer: Any, **names: str) -> Any:
    transformers = import_transformers()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names)
