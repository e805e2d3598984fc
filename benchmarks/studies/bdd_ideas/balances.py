"""Two balances of BDD, class by class, that ``benchmarks/studies/street_scenes_best_again.yaml`` compares.

They are written in the plain forms, which take more memory than :class:`bdd_seg.losses.BDDLoss`.
"""

from abc import abstractmethod

from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import BDDLoss
from bdd_seg.losses.divergences import DOMAINS, forward_kl, log_softmax, mean_over_distributions, reverse_kl
from bdd_seg.losses.pair import Pair


class ClassBalancedLoss(BDDLoss):
    """BDD whose terms have a weight for each distribution, in the channel domain for each class and image."""

    @abstractmethod
    def weights(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the factors of α and β, of the shape of the distributions: (N, C) in the channel domain."""

    def compare(self, pair: Pair) -> Tensor:
        """Return the mean over distributions of a·α·FKL(τ_f) + b·β·RKL(τ_r), with a, b the factors."""
        dim = DOMAINS[self.domain]
        tau_forward, tau_reverse = self.temperatures
        of_forward, of_reverse = self.weights(pair)
        forward = tau_forward**2 * forward_kl(*self._log_probabilities(pair, tau_forward), dim)
        reverse = tau_reverse**2 * reverse_kl(*self._log_probabilities(pair, tau_reverse), dim)
        terms = of_forward * self.forward_weight * forward + of_reverse * self.reverse_weight * reverse
        return mean_over_distributions(terms, dim, pair.mask)

    def _log_probabilities(self, pair: Pair, tau: float) -> tuple[Tensor, Tensor]:
        """Return log P of the teacher and log Q of the student, (N, C, H·W) each."""
        dim = DOMAINS[self.domain]
        log_p, log_q = (log_softmax(maps / tau, dim, pair.mask) for maps in (pair.teacher, pair.student))
        return log_p, log_q


@MODELS.register_module()
class AdaptiveBDDLoss(ClassBalancedLoss):
    """BDD that leans to the term whose part of the distribution is further off.

    The head of a distribution are the largest probabilities of the teacher that add up to a half, the tail is
    the rest. With g the sum of |p − q| over either, the factors are 2·g_head/(g_head + g_tail) for the
    forward and 2·g_tail/(g_head + g_tail) for the reverse divergence, as in the adaptive KL divergence of
    https://arxiv.org/abs/2404.02657. They have no gradient.
    """

    def weights(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the factors of both terms, which add up to 2."""
        dim = DOMAINS[self.domain]
        p, q = (log.detach().exp() for log in self._log_probabilities(pair, self.temperatures[0]))
        largest, order = p.sort(dim, descending=True)
        gap = (p - q).abs().gather(dim, order)
        head = largest.cumsum(dim) - largest < 0.5  # the one that crosses a half is among them
        of_head, whole = (gap * head).sum(dim), gap.sum(dim)
        share = (of_head / whole.clamp(min=1e-12)).where(whole > 0, 0.5)
        return 2 * share, 2 * (1 - share)


@MODELS.register_module()
class PresentBDDLoss(ClassBalancedLoss):
    """BDD in which a class counts in an image as much as the teacher is sure to see it there.

    In the channel domain every class has a distribution over the positions, in images without it, too, where
    it says little. The factor of both terms is the largest probability that the teacher gives the class at
    any position of the image, divided by the mean of that over classes and images. It has no gradient.
    """

    def weights(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the factor of both terms, with mean 1."""
        probabilities = pair.teacher.softmax(1).flatten(2)
        if pair.mask is not None:
            probabilities = probabilities * pair.mask.flatten(1)[:, None]
        sure = probabilities.amax(2)
        factor = sure / sure.mean().clamp(min=1e-12)
        return factor, factor
