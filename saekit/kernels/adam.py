"""Adam with everything that a training step does around it, in as few passes over the parameters as torch allows.

A step over parameters of a few hundred megabytes is bound by memory: clipping rides along in the optimizer's kernel,
and a matrix whose rows keep norm 1 is projected, updated and renormalised by blocks of rows that stay in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from saekit.kernels import gpu
from saekit.kernels.cpu import row_dots

_BLOCK_ENTRIES = 3 << 18
"""Entries of a block: 3 MB in float32, five of which fit a last-level cache."""


@torch.no_grad()
def adam_step_(optimizer: torch.optim.Adam, unit_rows: Sequence[Tensor] = (), clip_grad_norm: float = 0.0) -> bool:
    """Project, clip, step, renormalise; False, and nothing done, where this has no advantage over the plain calls.

    For `unit_rows`, matrices whose rows have norm 1, the part of the gradient along each row is taken out before the
    norm of all gradients is, and rows are brought back to norm 1 after the update. Like `clip_grad_norm_` and
    `optimizer.step()` otherwise. Gradients are spoilt. For fused Adam on the CPU and, by Triton, in float32 on CUDA,
    from its second step on.
    """
    if not all(_is_plain(group) for group in optimizer.param_groups):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(_is_ready(optimizer, p) for p in parameters):
        return False
    held = {id(parameter) for parameter in unit_rows}
    if parameters and parameters[0].device.type == "cuda":
        triton_step_(optimizer, parameters, held, clip_grad_norm)
        return True
    along = {id(p): row_dots(p.grad, p) for p in parameters if id(p) in held and p.grad is not None}
    scale = _scale(parameters, along, clip_grad_norm)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            state["step"] += 1
            tensors = parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]
            if id(parameter) in held:
                _update_unit_rows_(tensors, along[id(parameter)], state["step"], group, scale)
            else:
                _update_(tensors, state["step"], group, scale)
    return True


def triton_step_(
    optimizer: torch.optim.Adam, parameters: Sequence[Tensor], held: set[int], clip_grad_norm: float
) -> None:
    """As `adam_step_`: matrices by one kernel that does everything, the few numbers beside them by torch's."""
    from saekit.kernels.triton_adam import adam_rows_, row_statistics

    statistics, squares = {}, []
    for p in parameters:
        assert p.grad is not None
        if p.ndim == 2:
            statistics[id(p)] = row_statistics(p.grad, p, id(p) in held)
            squares.append(statistics[id(p)][1].sum())
        else:
            squares.append(p.grad.square().sum())
    norm = torch.stack(squares).sum().sqrt()
    scale = ((norm + 1e-6) / clip_grad_norm).clamp_min(1) if clip_grad_norm > 0 else None
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            state["step"] += 1
            tensors = p, p.grad, state["exp_avg"], state["exp_avg_sq"]
            if p.ndim == 2:
                settings = float(group["lr"]), group["betas"], group["eps"]
                adam_rows_(tensors, statistics[id(p)][0], state["step"], scale, *settings, id(p) in held)
            else:
                _update_(tensors, state["step"], group, scale)


def _update_unit_rows_(
    tensors: tuple[Tensor, ...], along: Tensor, step: Tensor, group: dict, scale: Tensor | None
) -> None:
    n_rows = max(1, _BLOCK_ENTRIES // tensors[0].shape[1])
    projected = torch.empty_like(tensors[0][:n_rows])
    for *block, dots in zip(*(t.split(n_rows) for t in tensors), along.split(n_rows), strict=True):
        rows, gradient, exp_avg, exp_avg_sq = block
        out = projected[: len(rows)]
        torch.addcmul(gradient, rows, dots[:, None], value=-1, out=out)
        _update_((rows, out, exp_avg, exp_avg_sq), step, group, scale)
        rows.div_(row_dots(rows, rows).sqrt_()[:, None])


def _update_(tensors: tuple[Tensor, ...], step: Tensor, group: dict, scale: Tensor | None) -> None:
    parameter, gradient, exp_avg, exp_avg_sq = tensors
    torch._fused_adam_(
        [parameter],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        lr=float(group["lr"]),
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=scale,
        found_inf=None if scale is None else torch.zeros_like(scale),
    )


def _scale(parameters: Sequence[Tensor], along: dict[int, Tensor], clip_grad_norm: float) -> Tensor | None:
    """What to divide gradients by so that the norm of all, projected, is at most `clip_grad_norm`; None for nothing."""
    if clip_grad_norm <= 0:
        return None
    squares = []
    for parameter in parameters:
        assert parameter.grad is not None
        flat = parameter.grad.reshape(-1)
        square = torch.dot(flat, flat).double()
        if id(parameter) in along:
            # What the projection takes away is orthogonal to what it leaves.
            square = (square - along[id(parameter)].double().square().sum()).clamp_min(0)
        squares.append(square)
    ratio = (torch.stack(squares).sum().sqrt() + 1e-6) / clip_grad_norm
    return ratio.clamp_min(1).float()


def _is_plain(group: dict) -> bool:
    return bool(group.get("fused")) and not (group["amsgrad"] or group["maximize"] or group["weight_decay"])


def _is_ready(optimizer: torch.optim.Adam, parameter: Tensor) -> bool:
    gradient = parameter.grad
    on_cpu = parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64)
    on_gpu = parameter.device.type == "cuda" and parameter.dtype == torch.float32 and gpu.is_available()
    return (
        (on_cpu or on_gpu)
        and gradient is not None
        and gradient.dtype == parameter.dtype
        and parameter.is_contiguous()
        and gradient.is_contiguous()
        and "exp_avg" in optimizer.state.get(parameter, {})
    )
