"""Hook points in TransformerLens' words, which most published autoencoders use, and in ours."""

import re

_OURS = {"hook_resid_post": "", "hook_resid_pre": ":input", "hook_mlp_out": ".mlp", "hook_attn_out": ".attention"}
_THEIRS = {suffix: name for name, suffix in _OURS.items()}


def from_transformer_lens(name: str | None) -> str | None:
    """Our hook point for `blocks.6.hook_resid_post`; None for one that is not an activation that we name."""
    found = re.fullmatch(r"blocks\.(\d+)\.(\w+)", name or "")
    if found is None or found[2] not in _OURS:
        return None
    return f"layers.{found[1]}{_OURS[found[2]]}"


def to_transformer_lens(hook_point: str | None) -> str | None:
    """TransformerLens' name for our hook point; None for one that it does not name."""
    found = re.fullmatch(r"layers\.(\d+)([.:]\w+)?", hook_point or "")
    if found is None:
        return None
    suffix = "" if found[2] in (None, ":output") else found[2]
    return f"blocks.{found[1]}.{_THEIRS[suffix]}" if suffix in _THEIRS else None


def layer_of(hook_point: str | None) -> int | None:
    """The block's number in one of our hook points."""
    found = re.match(r"layers\.(\d+)", hook_point or "")
    return int(found[1]) if found else None
