"""Train a segmentor, distilled or plain. The flags are those of mmseg's own tools/train.py."""

import argparse

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from bdd_seg.cli.arguments import add_config_arguments, add_hooks, config_from, make_folder
from bdd_seg.cli.config_check import check_config, check_datasets
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.explain import naming_the_cause
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.resume import latest_checkpoint
from bdd_seg.runtime.upstream.processes import join_processes
from bdd_seg.teachers.cached.pipeline import read_teacher_cache

HOOKS = {
    'batch_check': 'BatchCheckHook',
    'checkpoint_fits': 'CheckpointFitsHook',
    'exact_resume': 'ExactResumeHook',
    'finite': 'FiniteLossHook',
    'loss_state': 'LossStateHook',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        '--resume', action='store_true', help='go on from the latest checkpoint in the work dir'
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    return parser.parse_args()


@one_line_errors('interrupted; --resume goes on from the latest checkpoint')
def main() -> None:
    """Run the command."""
    args = parse_args()
    cfg = config_from(args)
    join_processes(cfg)
    check_config(cfg, 'train')
    cfg.resume = args.resume
    if args.resume and 'load_from' not in (args.cfg_options or {}):
        resume(cfg)
    if args.amp:
        enable_amp(cfg)
    add_hooks(cfg, HOOKS)
    check_datasets(cfg, 'train_dataloader', 'val_dataloader')
    read_teacher_cache(cfg)
    make_folder(cfg.work_dir, '--work-dir')
    with naming_the_cause(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train()


def resume(cfg: Config) -> None:
    """Go on from the work dir's latest checkpoint; where there is none yet, begin."""
    latest = latest_checkpoint(cfg.work_dir)
    cfg.resume = latest is not None
    if latest is None:
        print(f'no checkpoint in {cfg.work_dir} yet: the training begins')
    else:
        cfg.load_from = str(latest)


def enable_amp(cfg: Config) -> None:
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
    main()
