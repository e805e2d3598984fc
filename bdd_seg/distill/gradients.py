"""Factors of losses that give their gradients a chosen norm."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn

from bdd_seg.errors import ConfigError

_SCALES = (2.0**16, 2.0**8, 1.0)  # GradScaler begins with the first; powers of two round nothing


def gradient_norm(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the L2 norm of a loss's gradient in the parameters, a scalar. The graph is kept.

    The loss is scaled up for it, as far as no gradient overflows: in float16 small ones would become 0.

    Raises:
        ConfigError: The network recomputes activations, which allows no gradient apart from the step's.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    norm = loss.detach().float() * 0
    for scale in _SCALES:
        found: tuple[Tensor | None, ...] = ()
        if loss.requires_grad:
            try:
                found = torch.autograd.grad(
                    scale * loss.float(), wanted, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                raise ConfigError(
                    'model.balance_gradients: the gradient of one loss cannot be computed apart from the '
                    'others. Switch activation checkpointing off (with_cp=False), or give weights instead. '
                    f'({error})'
                ) from error
        squares = [gradient.float().square().sum() for gradient in found if gradient is not None]
        norm = torch.stack(squares).sum().sqrt() if squares else norm
        finite = norm.isfinite().float()
        all_reduce(finite, 'min')  # SyncBN's backward pass communicates: all processes take as many
        if finite:
            break
    return norm / scale


class GradientBalance:
    """Chooses, once, a factor for each loss by the norm of its gradient.

    The norm is that in the student's parameters and in those of the loss's own layers, which a large factor
    could make diverge.

    Args:
        ratio: The norm that each loss's gradient shall have, as a multiple of that of the student's own loss.
        from_zero: Names of losses with a schedule in which a number begins at 0.

    Attributes:
        factors: Name → factor, of the losses for which it is chosen.
    """

    def __init__(self, ratio: float, from_zero: Collection[str] = ()) -> None:
        self.ratio, self.from_zero = ratio, from_zero
        self.factors: dict[str, float] = {}
        self._warned: set[str] = set()

    def resume(self, factors: Mapping[str, float]) -> None:
        """Take factors over that a checkpoint holds."""
        self.factors = dict(factors)
        if factors:
            chosen = ', '.join(f'{name} × {factor:.4g}' for name, factor in factors.items())
            print_log(f"The checkpoint's factors of balanced gradients: {chosen}", 'current')

    def balance(
        self,
        own_loss: Tensor,
        losses: Mapping[str, Tensor],
        student: Sequence[nn.Parameter],
        layers: Mapping[str, Sequence[nn.Parameter]],
    ) -> dict[str, Tensor]:
        """Return the losses times their factors. Those without one get it now, if all norms are usable.

        Args:
            own_loss: The student's own loss, a scalar.
            losses: Name → distillation loss, a scalar.
            student: The student's parameters.
            layers: Name → parameters of the loss's own layers.

        Raises:
            ConfigError: A schedule makes a loss 0. The next step would balance a tiny share of it.
        """
        lacking = [name for name in losses if name not in self.factors]
        if lacking and torch.is_grad_enabled():
            norms = [gradient_norm(own_loss, student)]
            norms += [gradient_norm(losses[name], [*student, *layers.get(name, ())]) for name in lacking]
            together = torch.stack(norms)
            all_reduce(together, 'mean')  # so that all processes choose the same
            own, *others = together.tolist()
            for name, norm in zip(lacking, others, strict=True):
                if norm == 0 and name in self.from_zero:
                    raise ConfigError(
                        f'model.balance_gradients: the schedule of {name} begins at 0, so there is no '
                        'gradient to balance. Let the loss grow by schedule=dict(warmup=ITERATIONS), with '
                        'which it is balanced as it will be, or give weights instead'
                    )
                self._choose(name, norm, own)
        return {name: loss * self.factors.get(name, 1.0) for name, loss in losses.items()}

    def _choose(self, name: str, norm: float, own: float) -> None:
        if 0 < norm < math.inf and 0 < own < math.inf:
            self.factors[name] = self.ratio * own / norm
            print_log(
                f'{name} × {self.factors[name]:.4g}, so that its gradient has {self.ratio:g} times the norm '
                f"of the student's own loss's, {own:.4g}; it had {norm:.4g}",
                'current',
            )
        elif name not in self._warned:
            self._warned.add(name)
            print_log(
                f'{name} is not balanced yet: the norm of its gradient is {norm:g}, that of the '
                f"student's own loss {own:g}",
                'current',
                logging.WARNING,
            )
