"""The divergences of :mod:`bdd_seg.losses.divergences` in blocks, with the gradient in closed form.

With D distributions the gradients are ∂FKL/∂z_s = τ·(q − p)/D and ∂RKL/∂z_s = τ·q·(log q − log p −
KL(q‖p))/D.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bdd_seg.losses.divergences import (
    DOMAINS,
    MASKED,
    check_domain,
    check_exponents,
    check_settings,
    check_temperature,
    check_tensors,
    flat_mask,
)

Term = Callable[..., tuple[Tensor, Tensor]]
"""Called as ``term(student, teacher, dim, out=...)`` with a block of logits (n, c, h·w): returns the sum of a
divergence over the block's distributions, and its gradient in the student's logits, in ``out`` if given."""

# Logits worked on at a time. On a CPU the temporaries of one block stay in the cache; an accelerator
# wants few, large kernels instead.
_BLOCK = {'cpu': 2**18}
_BLOCK_ACCELERATOR = 2**22


def balance_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    domain: str = 'channel',
    tau_forward: float = 1.0,
    tau_reverse: float = 1.0,
    forward_weight: float = 1.0,
    reverse_weight: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the weighted sum of the forward and the reverse KL divergence, ``α·FKL(τ_f) + β·RKL(τ_r)``.

    P is the teacher's softened softmax, Q the student's. The mean is over distributions: N·H·W of size C in
    the pixel domain, N·C of size H·W in the channel domain. Computed in float32 (float64 for float64 input).
    The gradient is the closed form, computed in the forward pass block by block. Besides both inputs one
    tensor of the student's size is kept for the backward pass, and no softmax.

    With D distributions no element of the gradient exceeds (α·τ_f + β·S/4)/D, where S is the spread of
    ``student_logits - teacher_logits``: at logits up to 6e4 float16 holds it for α = β = 1. Where a weight
    or a scale on top leads beyond float16's range, it is infinite and not cut off, so that ``GradScaler``
    sees it.

    Args:
        student_logits: (N, C, H, W), finite, of any floating dtype and memory format. Receives the
            gradient.
        teacher_logits: (N, C, H, W), the same shape. Treated as a constant.
        domain: What a distribution runs over: ``'pixel'`` (the C classes of one position) or
            ``'channel'`` (the H·W positions of one class).
        tau_forward: Temperature of the forward divergence KL(P‖Q), > 0.
        tau_reverse: Temperature of the reverse divergence KL(Q‖P), > 0.
        forward_weight: α, the weight of the forward divergence.
        reverse_weight: β, the weight of the reverse divergence.
        mask: (N, H, W) bool, True where a position counts, or (N, C, H, W), True where a logit counts. What
            does not count leaves both softmaxes, and a distribution without any logit that counts leaves
            the mean. A mask that excludes everything gives 0.

    Returns:
        The divergence, a scalar of dtype float32 (float64 for float64 input).

    Raises:
        ValueError: Shapes differ, an unknown domain, a temperature that is not positive, or a weight that is
            no number.
        TypeError: Logits that are not floating point, or a mask that is not bool.
    """
    check_settings(domain, tau_forward, tau_reverse, forward_weight, reverse_weight)
    check_tensors(student_logits, teacher_logits, mask)
    settings = by_temperature(tau_forward, tau_reverse, forward_weight, reverse_weight)
    terms = [
        partial(_balance, tau=tau, forward_weight=forward, reverse_weight=reverse)
        for tau, forward, reverse in settings
    ]
    return _mean_divergence(student_logits, teacher_logits, mask, domain, terms)


def by_temperature(
    tau_forward: float, tau_reverse: float, forward_weight: float, reverse_weight: float
) -> list[tuple[float, float, float]]:
    """Return (temperature, forward weight, reverse weight) of each term that needs softmaxes of its own."""
    settings = [(tau_forward, forward_weight, 0.0), (tau_reverse, 0.0, reverse_weight)]
    if tau_forward == tau_reverse:
        settings = [(tau_forward, forward_weight, reverse_weight)]
    return [one for one in settings if any(one[1:])] or settings[:1]


def alpha_beta_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    beta: float,
    tau: float = 1.0,
    domain: str = 'pixel',
    mask: Tensor | None = None,
) -> Tensor:
    """Return τ² times the mean α-β-divergence, https://arxiv.org/abs/2505.04560.

    With P the teacher's softened softmax and Q the student's, the divergence of a distribution is
    ``Σ p^(α+β)/(β·(α+β)) + q^(α+β)/(α·(α+β)) − p^α·q^β/(α·β)``. Its limit is KL(P‖Q) at (1, 0) and KL(Q‖P) at
    (0, 1); both are computed exactly. The gradient is the closed form.

    Args:
        student_logits: (N, C, H, W), as for :func:`balance_divergence`, like all that follow.
        teacher_logits: (N, C, H, W).
        alpha: α ≥ 0.
        beta: β ≥ 0, not 0 if α is.
        tau: Temperature, > 0.
        domain: ``'pixel'`` or ``'channel'``.
        mask: (N, H, W) or (N, C, H, W) bool.

    Raises:
        ValueError: As for :func:`balance_divergence`, or α or β is negative, or both are 0.
        TypeError: As for :func:`balance_divergence`.
    """
    check_domain(domain)
    check_temperature('tau', tau)
    check_exponents(alpha, beta)
    check_tensors(student_logits, teacher_logits, mask)
    terms = [partial(_alpha_beta, tau=tau, alpha=alpha, beta=beta)]
    return _mean_divergence(student_logits, teacher_logits, mask, domain, terms)


def _mean_divergence(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, domain: str, terms: Sequence[Term]
) -> Tensor:
    teacher_logits = teacher_logits.detach()
    if teacher_logits.is_inference():  # which autograd cannot keep
        teacher_logits = teacher_logits.clone()
    with_gradient = student_logits.requires_grad and torch.is_grad_enabled()
    return _MeanDivergence.apply(student_logits, teacher_logits, mask, DOMAINS[domain], terms, with_gradient)


class _MeanDivergence(torch.autograd.Function):
    """The mean over distributions of a sum of terms, with its gradient in closed form."""

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None,
        dim: int,
        terms: Sequence[Term],
        with_gradient: bool,
    ) -> Tensor:
        total, gradient = _evaluate(student_logits, teacher_logits, mask, dim, terms, with_gradient)
        count = _count_distributions(student_logits.shape, dim, mask)
        ctx.save_for_backward(student_logits, teacher_logits, mask)
        ctx.gradient, ctx.count, ctx.dim, ctx.terms = gradient, count, dim, terms
        return (total / count).to(torch.promote_types(student_logits.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Given away and scaled in place, so that there is never a second tensor of this size. A second
        # backward pass through the same graph works it out anew.
        gradient, ctx.gradient = ctx.gradient, None
        student_logits, teacher_logits, mask = ctx.saved_tensors
        if gradient is None:
            _, gradient = _evaluate(student_logits, teacher_logits, mask, ctx.dim, ctx.terms, True)
        gradient = gradient.mul_(grad_output / ctx.count).to(student_logits.dtype)
        return gradient.view(student_logits.shape), None, None, None, None, None


def _evaluate(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None,
    dim: int,
    terms: Sequence[Term],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of the divergences, and its gradient in the student's logits as (N, C, H·W)."""
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits.flatten(2), teacher_logits.flatten(2)  # (N, C, H·W)
    if mask is not None:
        mask = flat_mask(mask)
        mask = mask.expand(-1, student.shape[1], -1)  # (N, C, H·W)
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    gradient = torch.empty_like(student, dtype=dtype) if with_gradient else None
    for block in _blocks(student.shape, dim, _BLOCK.get(student.device.type, _BLOCK_ACCELERATOR)):
        excluded = None if mask is None else ~mask[block]
        student_block = _read(student[block], excluded, dtype)
        teacher_block = _read(teacher[block], excluded, dtype)
        for i, term in enumerate(terms):
            out = gradient[block] if gradient is not None and i == 0 else None
            value, slope = term(student_block, teacher_block, dim, out=out)
            total += value
            if gradient is not None and i > 0:
                gradient[block] += slope
    return total, gradient


def _balance(
    student: Tensor,
    teacher: Tensor,
    dim: int,
    tau: float,
    forward_weight: float,
    reverse_weight: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The :data:`Term` τ²·(α·KL(p‖q) + β·KL(q‖p)).

    The time goes into memory traffic, so a tensor that is not needed again lends its memory to the next,
    and the gradient is written to ``out`` where that is given.
    """
    p, q, log_ratio = _softened(student, teacher, dim, tau)
    scratch = p + q
    gap = (0.5 * log_ratio).tanh_().mul_(scratch)  # q − p, without its cancellation where the two are close
    # Adding Σ(q − p) = 0 makes each summand ≥ 0: a small divergence is no difference of large sums.
    forward_kl = torch.addcmul(gap, p, log_ratio, value=-1, out=scratch).sum()
    surprise = torch.mul(q, log_ratio, out=p)
    reverse_kl = torch.sub(surprise, gap, out=scratch).sum(dim, keepdim=True)
    value = tau**2 * (
        forward_weight * forward_kl.double() + reverse_weight * reverse_kl.sum(dtype=torch.float64)
    )
    slope = surprise.addcmul_(q, reverse_kl, value=-1).mul_(tau * reverse_weight)
    return value, torch.add(slope, gap, alpha=tau * forward_weight, out=out)


def _alpha_beta(
    student: Tensor,
    teacher: Tensor,
    dim: int,
    tau: float,
    alpha: float,
    beta: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The :data:`Term` of the α-β-divergence, without a division by 0 where α or β is 0.

    With r = log(q/p) and u = p^α·q^β it is Σ (A + B)/(α + β), where A = u·(e^(α·r) − 1)/α tends to u·r and
    B = u·(e^(−β·r) − 1)/β to −u·r. A is also the gradient in log q.
    """
    log_p, log_q = (teacher / tau).log_softmax(dim), (student / tau).log_softmax(dim)
    log_ratio, u = log_q - log_p, (alpha * log_p + beta * log_q).exp()
    slope = _power_difference(u, log_ratio, alpha, (alpha + beta) * log_q)
    value = slope + _power_difference(u, -log_ratio, beta, (alpha + beta) * log_p)
    slope = torch.addcmul(slope, log_q.exp(), slope.sum(dim, keepdim=True), value=-1)
    return tau**2 / (alpha + beta) * value.sum(dtype=torch.float64), torch.mul(slope, tau, out=out)


def _power_difference(u: Tensor, x: Tensor, power: float, log_end: Tensor) -> Tensor:
    """Return u·(e^(power·x) − 1)/power, which for power 0 is u·x; ``log_end`` is log(u·e^(power·x))."""
    if power == 0:
        return u * x
    x = power * x
    # u may be 0 where e^x is infinite; elsewhere expm1 keeps the digits of small differences.
    return torch.where(x < 1, u * x.clamp(max=1).expm1(), log_end.exp() - u) / power


def _softened(student: Tensor, teacher: Tensor, dim: int, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return p, q and log(q/p) along ``dim``; the largest logit is subtracted so that nothing overflows."""
    p = (teacher - teacher.amax(dim, keepdim=True)).mul_(1 / tau)
    q = (student - student.amax(dim, keepdim=True)).mul_(1 / tau)
    log_ratio = q - p
    p_sum, q_sum = p.exp_().sum(dim, keepdim=True), q.exp_().sum(dim, keepdim=True)
    return p.mul_(1 / p_sum), q.mul_(1 / q_sum), log_ratio.add_((p_sum / q_sum).log_())


def _blocks(shape: torch.Size, dim: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield indices of (N, C, H·W) logits, in blocks of about ``size`` elements that leave ``dim`` whole."""
    images, channels, positions = shape
    free = positions if dim == 1 else channels  # the axis along which distributions lie side by side
    length = channels if dim == 1 else positions
    side_by_side = max(1, min(free, size // max(1, length)))
    if 64 < side_by_side < free:
        side_by_side -= side_by_side % 64  # rows that start where cache lines do
    images_at_once = max(1, size // max(1, channels * positions))
    for n in range(0, images, images_at_once):
        for k in range(0, free, side_by_side):
            part = slice(k, k + side_by_side)
            batch = slice(n, n + images_at_once)
            yield (batch, slice(None), part) if dim == 1 else (batch, part, slice(None))


def _read(block: Tensor, excluded: Tensor | None, dtype: torch.dtype) -> Tensor:
    block = block.to(dtype)
    return block if excluded is None else block.masked_fill(excluded, MASKED)


def _count_distributions(shape: torch.Size, dim: int, mask: Tensor | None) -> Tensor | int:
    """Count the distributions that have a logit that counts; at least 1, since it is a divisor."""
    images, channels, height, width = shape
    if mask is None:
        return max(1, images * (height * width if dim == 1 else channels))
    counts = flat_mask(mask).any(dim)
    repeats = channels if dim == 2 and mask.dim() == 3 else 1
    return (repeats * counts.sum()).clamp(min=1)
