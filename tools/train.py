"""Train a segmentor, distilled or plain. The flags are those of mmseg's own tools/train.py."""

import argparse
import os
import sys
from pathlib import Path

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from bdd_seg.engine import check_datasets, load_config
from bdd_seg.errors import ConfigError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file: a path, or mmseg::FOLDER/NAME.py')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--resume', action='store_true', help='go on from the latest checkpoint in the work dir'
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, lists as key="[a,b]" or key=a,b, nested ones as '
        'key="[(a,b),(c,d)]"; the quotation marks are needed, and no white space is allowed',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher'
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by older torch launchers'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.resume = args.resume
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or f'./work_dirs/{Path(args.config).stem}'
    if args.amp:
        enable_amp(cfg)
    check_datasets(cfg, 'train_dataloader', 'val_dataloader')
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()


def enable_amp(cfg) -> None:
    kind = cfg.optim_wrapper.type
    amp_wrappers = ('AmpOptimWrapper', 'BFloat16OptimWrapper')
    if kind in amp_wrappers:
        return
    if kind != 'OptimWrapper':
        raise ConfigError(f"--amp needs optim_wrapper.type 'OptimWrapper', the config has {kind!r}")
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


if __name__ == '__main__':
    try:
        main()
    except ConfigError as error:
        sys.exit(f'error: {error}')
