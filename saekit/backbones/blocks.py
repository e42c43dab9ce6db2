"""Where the transformer blocks of a model are, and the attention and MLP inside them, found by structure."""

from dataclasses import dataclass

from torch import nn

from saekit.errors import BackboneError

# In order of preference. The first entries are the projections of families whose sublayer modules add the residual
# stream themselves (BERT, BLOOM); what the sublayer adds is the output of that projection.
_ATTENTION = ("attention.output.dense", "self_attention.dense", "self_attn", "self_attention", "attention", "attn")
_MLP = ("output.dense", "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")


@dataclass(frozen=True)
class Blocks:
    """Module paths of a model's residual blocks and, relative to a block, of its two sublayers."""

    path: str
    """Path of the list of blocks; block i is at `f"{path}.{i}"`."""
    n_layers: int
    """Number of blocks."""
    attention: str | None
    """Path inside a block of the module whose output is the attention's; None where the blocks have none."""
    mlp: str | None
    """Path inside a block of the module whose output is the MLP's; None where the blocks have none."""

    def block(self, layer: int) -> str:
        return f"{self.path}.{layer}"


def find_blocks(model: nn.Module, n_layers: int | None = None) -> Blocks:
    """The list of blocks with the most parameters, among the lists of length `n_layers` where that is known.

    Raises `BackboneError` when the model has no such list, e.g. because all layers share one block.
    """
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    }
    sized = {path: list(module) for path, module in lists.items() if len(module) == n_layers or n_layers is None}
    candidates = {path: blocks for path, blocks in sized.items() if blocks and _sublayer(blocks, _ATTENTION)}
    if not candidates:
        found = ", ".join(f"{path!r} of {len(module)}" for path, module in lists.items()) or "none at all"
        raise BackboneError(
            f"{type(model).__name__} has no list of {n_layers or 'n'} transformer blocks with attention in it "
            f"(lists found: {found}). saekit reads models whose residual stream runs through one list of blocks."
        )
    path = max(candidates, key=lambda path: sum(p.numel() for block in candidates[path] for p in block.parameters()))
    blocks = candidates[path]
    return Blocks(path, len(blocks), _sublayer(blocks, _ATTENTION), _sublayer(blocks, _MLP))


def _sublayer(blocks: list[nn.Module], options: tuple[str, ...]) -> str | None:
    """The first option that exists in every block."""
    inside = set.intersection(*({path for path, _ in block.named_modules()} for block in blocks))
    return next((option for option in options if option in inside), None)
