"""Follow the gradients of the forward and the reverse KL divergence along a training.

Trains a config of a distillation as tools/train.py does, with a probe among its losses that changes nothing.
Every few iterations the probe takes the gradients of both terms in the student's logits, and writes down how
large they are, whether they agree, and which pixels and classes they move. The result is a table, and JSON.
"""

import argparse
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.cli.arguments import add_config_arguments
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.steps import build_runner, prepare
from bdd_seg.cli.train import enable_amp
from bdd_seg.errors import ConfigError
from bdd_seg.losses import DistillLoss
from bdd_seg.losses.bpkd import edges
from bdd_seg.losses.fused import balance_divergence
from bdd_seg.losses.pair import Pair
from bdd_seg.runtime.upstream.atomic_files import write_json
from bdd_seg.study.report import markdown

COLUMNS = {
    'iteration': '{:.0f}',
    'forward divergence': '{:.3f}',
    'reverse divergence': '{:.3f}',
    'norm forward': '{:.4f}',
    'norm reverse': '{:.4f}',
    'cosine': '{:+.2f}',
    'edges forward (%)': '{:.0f}',
    'edges reverse (%)': '{:.0f}',
    'teacher wrong forward (%)': '{:.0f}',
    'teacher wrong reverse (%)': '{:.0f}',
    'disagreement forward (%)': '{:.0f}',
    'disagreement reverse (%)': '{:.0f}',
}


@MODELS.register_module()
class GradientProbe(DistillLoss):
    """A loss of 0 that writes down the gradients of both divergences in the student's logits.

    Args:
        domain: As for :class:`~bdd_seg.losses.BDDLoss`.
        tau: The temperature of both.
        interval: Iterations between two records.
        **shared: Arguments of :class:`~bdd_seg.losses.DistillLoss`.

    Attributes:
        records: One dict a record: the columns of the table, and ``classes forward`` and ``classes reverse``,
            the share of each class's channel in the sum of the absolute gradients, in percent.
    """

    needs_labels = True

    def __init__(self, domain: str, tau: float, interval: int, **shared: Any) -> None:
        super().__init__(loss_name='loss_probe', **shared)
        self.domain, self.tau, self.interval = domain, tau, interval
        self.records: list[dict[str, Any]] = []

    def compare(self, pair: Pair) -> Tensor:
        """Return 0, after a record where it is time for one."""
        iteration = MessageHub.get_current_instance().get_info('iter') or 0
        if iteration % self.interval == 0:
            self.records.append({'iteration': iteration, **self._record(pair)})
        return 0 * pair.student.sum()

    def _record(self, pair: Pair) -> dict[str, Any]:
        label, mask = pair.labelled()
        teacher, student = pair.teacher.argmax(1), pair.student.detach().argmax(1)
        places = {
            'edges': edges(label, mask, radius=1),
            'teacher wrong': mask & (teacher != label),
            'disagreement': mask & (teacher != student),
        }
        record: dict[str, Any] = {
            f'{name} (%)': 100 * at[mask].float().mean().item() for name, at in places.items()
        }
        gradients = {}
        for term, weights in (('forward', (1.0, 0.0)), ('reverse', (0.0, 1.0))):
            logits = pair.student.detach().requires_grad_()
            with torch.enable_grad():
                value = balance_divergence(
                    logits,
                    pair.teacher,
                    domain=self.domain,
                    tau_forward=self.tau,
                    tau_reverse=self.tau,
                    forward_weight=weights[0],
                    reverse_weight=weights[1],
                    mask=mask,
                )
                (gradient,) = torch.autograd.grad(value, logits)
            gradients[term] = gradient
            size = gradient.abs()
            record[f'{term} divergence'] = value.item()
            record[f'norm {term}'] = gradient.norm().item()
            for name, at in places.items():
                record[f'{name} {term} (%)'] = 100 * (size.sum(1)[at].sum() / size.sum()).item()
            record[f'classes {term}'] = (100 * size.sum((0, 2, 3)) / size.sum()).tolist()
        forward, reverse = (gradients[term].flatten() for term in ('forward', 'reverse'))
        record['cosine'] = torch.cosine_similarity(forward, reverse, dim=0).item()
        return record


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision, as for tools/train.py')
    parser.add_argument('--domain', choices=['channel', 'pixel'], default='channel', help='default: channel')
    parser.add_argument('--tau', type=float, default=1.0, help='temperature of both terms (default: 1)')
    parser.add_argument('--interval', type=int, default=25, help='iterations between records (default: 25)')
    parser.add_argument('--out', type=Path, help='JSON file (default: gradients.json in the work dir)')
    return parser.parse_args()


def add_probe(cfg: Any, args: argparse.Namespace) -> None:
    """Add the probe to a config's losses, and leave validation out.

    Raises:
        ConfigError: The config is none of a distillation, or does not count iterations.
    """
    if 'distill_losses' not in cfg.model:
        raise ConfigError(
            f'{args.config}: model.distill_losses is missing; give the config of a distillation'
        )
    if 'max_iters' not in cfg.train_cfg:
        raise ConfigError(f'{args.config}: train_cfg.max_iters is missing; the probe counts iterations')
    probe = {'type': 'GradientProbe', 'domain': args.domain, 'tau': args.tau, 'interval': args.interval}
    cfg.model.distill_losses = [*cfg.model.distill_losses, probe]
    cfg.train_cfg.val_begin = cfg.train_cfg.max_iters + 1
    if args.amp:
        enable_amp(cfg)


def table(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table, a line a record."""
    rows = [[form.format(record[name]) for name, form in COLUMNS.items()] for record in records]
    return markdown([*COLUMNS], 'r' * len(COLUMNS), rows)


@one_line_errors('interrupted')
def main() -> None:
    """Run the command."""
    args = parse_args()
    cfg = prepare(args, 'train', add_probe)
    runner = build_runner(cfg, args.verbose)
    runner.train()
    records = next(loss.records for loss in runner.model.distill_losses if isinstance(loss, GradientProbe))
    out = args.out or Path(cfg.work_dir) / 'gradients.json'
    classes = runner.train_dataloader.dataset.metainfo['classes']
    settings = {'domain': args.domain, 'tau': args.tau, 'config': str(args.config)}
    write_json(out, {**settings, 'classes': list(classes), 'records': records})
    print(f'{table(records)}\n\n{out}')


if __name__ == '__main__':
    main()
