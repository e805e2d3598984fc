"""Train a segmentor, distilled or plain. The flags are those of mmseg's own tools/train.py."""

import argparse

from mmengine.config import Config
from mmengine.device import get_device

from bdd_seg.cli.arguments import add_config_arguments
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.steps import build_runner, prepare
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.work_dir import hold_work_dir
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint


@one_line_errors('interrupted; --resume goes on from the latest checkpoint')
def main() -> None:
    """Run the command."""
    args = parse_args()
    cfg = prepare(args, 'train', apply_flags)
    with hold_work_dir(cfg.work_dir, cfg.launcher):
        if args.resume and 'load_from' not in (args.cfg_options or {}):
            resume(cfg)  # only now can no other training write checkpoints here
        build_runner(cfg, args.verbose).train()


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        '--resume', action='store_true', help='go on from the latest checkpoint in the work dir'
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    precision.add_argument('--bf16', action='store_true', help='mixed precision: bfloat16 on a GPU, too')
    return parser.parse_args()


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Change the config as ``--resume``, ``--amp`` and ``--bf16`` say."""
    cfg.resume = args.resume
    if args.amp or args.bf16:
        enable_amp(cfg, bf16=args.bf16)


def resume(cfg: Config) -> None:
    """Go on from the work dir's latest checkpoint; begin where there is none yet.

    Raises:
        ConfigError: There are checkpoints, and none can be read.
    """
    latest = latest_checkpoint(cfg.work_dir)
    cfg.resume = latest is not None
    if latest is None:
        print(f'no checkpoint in {cfg.work_dir} yet: the training begins')
    else:
        cfg.load_from = str(latest)


def enable_amp(cfg: Config, bf16: bool = False) -> None:
    """Choose the optimizer wrapper for mixed precision on this machine.

    Args:
        cfg: The whole config, changed in place.
        bf16: Whether a GPU computes in bfloat16, as a CPU always does, instead of float16.

    Raises:
        ConfigError: The config has another optimizer wrapper.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    amp_wrappers = ('AmpOptimWrapper', 'BFloat16OptimWrapper')
    if kind in amp_wrappers:
        return
    if kind != 'OptimWrapper':
        flag = '--bf16' if bf16 else '--amp'
        raise ConfigError(f"{flag} needs optim_wrapper.type 'OptimWrapper', the config has {kind!r}")
    if bf16 or get_device() == 'cpu':
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


if __name__ == '__main__':
    main()
