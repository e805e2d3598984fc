"""What the tools share: mmseg's flags, how they make a config, and how a tool ends."""

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config, DictAction

from bdd_seg.engine.config import load_config
from bdd_seg.errors import ConfigError


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of mmseg's tools that concern the config and the launcher."""
    parser.add_argument('config', help='config file: a path, or mmseg::FOLDER/NAME.py')
    parser.add_argument('--work-dir', help='folder for what is written (default: work_dirs/CONFIG_NAME)')
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


def config_from(args: argparse.Namespace) -> Config:
    """The config that the flags of :func:`add_config_arguments` describe."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or f'./work_dirs/{Path(args.config).stem}'
    return cfg


def run_tool(main: Callable[[], None], if_interrupted: str = 'interrupted') -> None:
    """Run a tool; what its user can mend ends it with one line, not with a traceback."""
    # For ways to torch.load that load_checkpoint does not cover, such as init_cfg's open-mmlab://NAME.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    try:
        main()
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if 'GLOBAL' in line), lines[0] if lines else 'unreadable')
        sys.exit(f'error: the checkpoint loaded last holds more than weights and is refused ({reason})')
    except KeyboardInterrupt:
        sys.exit(if_interrupted)
