"""Forward and reverse KL divergence between a teacher's and a student's logits, as the papers write them.

With p the teacher's and q the student's distribution, both softened by a temperature τ,

    FKL(τ) = τ² · mean over distributions of Σ p·log(p/q)
    RKL(τ) = τ² · mean over distributions of Σ q·log(q/p)
    BDD    = α·FKL(τ_f) + β·RKL(τ_r)

A distribution runs over the C classes of one position (domain ``'pixel'``) or over the H·W positions of one
class (domain ``'channel'``). Classical knowledge distillation (https://arxiv.org/abs/1503.02531) is FKL in
the pixel domain, channel-wise distillation (https://arxiv.org/abs/2011.13256) is FKL in the channel domain,
and balance divergence distillation (https://arxiv.org/abs/2501.07804) is the weighted sum of both terms.

These forms are for reading and for tests. The losses call :mod:`bdd_seg.losses.fused`, which computes the
same in less time and memory.
"""

import math

import torch
from torch import Tensor

DOMAINS = {'pixel': 1, 'channel': 2}
"""The axis of (N, C, H·W) logits that a distribution runs over."""

MASKED = -1e30
"""Written over logits that do not count. A softmax gives them probability 0 beside anything else, and two
distributions with nothing else in them are equal."""


def forward_kl(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """Return KL(P‖Q) along ``dim`` for the teacher's log P and the student's log Q."""
    return (log_p.exp() * (log_p - log_q)).sum(dim)


def reverse_kl(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """Return KL(Q‖P) along ``dim`` for the teacher's log P and the student's log Q."""
    return forward_kl(log_q, log_p, dim)


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
    """Return α·FKL(τ_f) + β·RKL(τ_r), in the dtype of the logits.

    Arguments are those of :func:`bdd_seg.losses.fused.balance_divergence`.
    """
    check_settings(domain, tau_forward, tau_reverse, forward_weight, reverse_weight)
    check_tensors(student_logits, teacher_logits, mask)
    dim = DOMAINS[domain]
    total = student_logits.new_zeros(())
    terms = ((forward_kl, tau_forward, forward_weight), (reverse_kl, tau_reverse, reverse_weight))
    for divergence, tau, weight in terms:
        log_p = log_softmax(teacher_logits.detach() / tau, dim, mask)
        log_q = log_softmax(student_logits / tau, dim, mask)
        total = total + weight * tau**2 * mean_over_distributions(divergence(log_p, log_q, dim), dim, mask)
    return total


def alpha_beta_divergence(log_p: Tensor, log_q: Tensor, dim: int, alpha: float, beta: float) -> Tensor:
    """Return Σ p^(α+β)/(β·(α+β)) + q^(α+β)/(α·(α+β)) − p^α·q^β/(α·β) along ``dim``, for α, β > 0."""
    total = alpha + beta
    p, q = (total * log_p).exp(), (total * log_q).exp()
    both = (alpha * log_p + beta * log_q).exp()
    return (p / (beta * total) + q / (alpha * total) - both / (alpha * beta)).sum(dim)


def log_softmax(logits: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """Return log-probabilities (N, C, H·W) along ``dim``, without the logits that do not count."""
    flat = logits.flatten(2)
    return (flat if mask is None else flat.masked_fill(~flat_mask(mask), MASKED)).log_softmax(dim)


def flat_mask(mask: Tensor) -> Tensor:
    """Return a mask (N, H, W) or (N, C, H, W) as (N, 1, H·W) or (N, C, H·W)."""
    return (mask[:, None] if mask.dim() == 3 else mask).flatten(2)


def mean_over_distributions(values: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """Return the mean of one value per distribution, over those that have a logit that counts.

    Args:
        values: (N, H·W) in the pixel domain, (N, C) in the channel domain.
        dim: 1 or 2, as in :data:`DOMAINS`.
        mask: (N, H, W) or (N, C, H, W) bool.
    """
    if mask is None:
        return values.mean()
    counts = flat_mask(mask).any(dim).expand_as(values)
    return (values * counts).sum() / counts.sum().clamp(min=1)


def check_settings(
    domain: str, tau_forward: float, tau_reverse: float, forward_weight: float, reverse_weight: float
) -> None:
    """Check a domain, temperatures and weights.

    Raises:
        ValueError: An unknown domain, a temperature that is not positive, or a weight that is no number.
    """
    check_domain(domain)
    check_temperature('tau_forward', tau_forward)
    check_temperature('tau_reverse', tau_reverse)
    check_weights(forward_weight=forward_weight, reverse_weight=reverse_weight)


def check_domain(domain: str) -> None:
    """Check a domain.

    Raises:
        ValueError: It is not in :data:`DOMAINS`.
    """
    if domain not in DOMAINS:
        raise ValueError(f'domain must be one of {sorted(DOMAINS)}, got {domain!r}')


def check_temperature(name: str, tau: float) -> float:
    """Return a temperature.

    Raises:
        ValueError: It is not a positive number.
    """
    if not isinstance(tau, int | float) or not 0 < tau < math.inf:
        raise ValueError(f'{name} must be a positive number, got {tau!r}')
    return float(tau)


def check_exponents(alpha: float, beta: float) -> None:
    """Check the exponents of the α-β-divergence.

    Raises:
        ValueError: One is negative or no number, or both are 0.
    """
    for name, value in (('alpha', alpha), ('beta', beta)):
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f'{name} must be a number from 0 on, got {value!r}')
    if alpha == beta == 0:
        raise ValueError('alpha and beta must not both be 0')


def check_weights(**weights: float) -> None:
    """Check weights, by their names.

    Raises:
        ValueError: One is no number.
    """
    for name, weight in weights.items():
        if not isinstance(weight, int | float):
            raise ValueError(f'{name} must be a number, got {weight!r}')


def check_tensors(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None) -> None:
    """Check shapes and dtypes.

    Raises:
        ValueError: Logits are not (N, C, H, W) of one shape, or the mask is not (N, H, W) or (N, C, H, W).
        TypeError: Logits are not floating point, or the mask is not bool.
    """
    for name, logits in (('student_logits', student_logits), ('teacher_logits', teacher_logits)):
        if not logits.is_floating_point():
            raise TypeError(f'{name} must be floating point, got {logits.dtype}')
        if logits.dim() != 4:
            raise ValueError(f'{name} must be (N, C, H, W), got shape {tuple(logits.shape)}')
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise ValueError(
            'student and teacher must have the same channels, which for logits are the classes; got '
            f'{student_logits.shape[1]} and {teacher_logits.shape[1]}'
        )
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            'student_logits and teacher_logits must have the same shape, got '
            f'{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}'
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f'mask must be bool, True where a position counts, got {mask.dtype}')
    expected = (student_logits.shape[0], *student_logits.shape[2:])
    if mask.shape not in (expected, student_logits.shape):
        raise ValueError(f'mask must be (N, H, W) = {expected} or (N, C, H, W), got {tuple(mask.shape)}')
