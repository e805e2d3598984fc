"""Evaluate a segmentor, distilled or plain. The flags are those of mmseg's own tools/test.py.

A work dir can be given alone, for its config and its latest checkpoint, and so can a checkpoint with its
config beside it. A file of bdd-seg export is evaluated in the same way: bdd-seg test MODEL.onnx --config
CONFIG. A .pt2 is a program, which can run any code: load only those you trust.
"""

import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
from mmengine.config import Config

from bdd_seg.cli.arguments import add_config_arguments, make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.steps import build_runner, prepare
from bdd_seg.deploy.exported import SUFFIXES, ExportedFile, segmentor_for
from bdd_seg.deploy.load import find_pair
from bdd_seg.distill.student import plain_model
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import class_names


@one_line_errors()
def main() -> None:
    """Run the command."""
    args = parse_args()
    cfg = prepare(args, 'test', apply_flags)
    build_runner(cfg, args.verbose).test()


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint, or a file of bdd-seg export: .onnx, .pt2')
    parser.add_argument(
        '--config', dest='config_of', metavar='CONFIG', help='config of an exported file that is given alone'
    )
    parser.add_argument('--out', help='folder to save the predicted label maps in')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder to save painted images in')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between shown images (default: 2)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: several scales and flips')
    args = parser.parse_args()
    if args.config_of is not None and args.checkpoint is None:
        args.config, args.checkpoint = args.config_of, args.config
    elif args.config_of is not None:
        parser.error('--config is for an exported file that is given alone, as in MODEL.onnx --config CONFIG')
    elif args.checkpoint is None and Path(args.config).suffix in SUFFIXES:
        parser.error(f'{args.config} needs its config: --config CONFIG')
    elif args.checkpoint is None:
        args.config, args.checkpoint = find_pair(args.config)
    return args


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Change the config as the checkpoint and the flags say.

    Raises:
        ConfigError: There is no such checkpoint, or the config lacks a setting that a flag needs.
    """
    if Path(args.checkpoint).suffix in SUFFIXES:
        take_exported(cfg, args.checkpoint)
    else:
        cfg.model = plain_model(cfg.model)  # without its teacher, which may be far away
        cfg.load_from = args.checkpoint
        if not os.path.exists(args.checkpoint) and '://' not in args.checkpoint:
            raise ConfigError(f'checkpoint {args.checkpoint!r} does not exist')
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        augment(cfg)
    if args.out is not None:
        make_folder(args.out, '--out')
        cfg.test_evaluator['output_dir'] = args.out
        cfg.test_evaluator['keep_results'] = True


def take_exported(cfg: Config, file: str) -> None:
    """Put an exported file in the place of the config's model.

    Raises:
        ConfigError: It is missing or damaged, or for other classes than those of the test data.
    """
    about = ExportedFile(file).about
    classes = class_names(cfg.test_dataloader.dataset)
    if classes is not None and classes != about.classes:
        raise ConfigError(
            f'{file} has the classes {", ".join(about.classes)}, and the data of test_dataloader '
            f'{", ".join(classes)}. Give the config with which it was exported'
        )
    cfg.model = segmentor_for(file, cfg)
    cfg.load_from = None


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Let the visualization hook paint predictions, as ``--show`` and ``--show-dir`` ask.

    Raises:
        ConfigError: The config has no such hook, or there is no display to show them on.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(
            '--show and --show-dir need default_hooks.visualization=dict(type="SegVisualizationHook")'
        )
    hook['draw'] = True
    if args.show:
        if plt.get_backend().lower() == 'agg':  # the backend that matplotlib falls back to, which shows none
            raise ConfigError('--show needs a display, and there is none. --show-dir FOLDER needs none')
        hook['show'] = True
        hook['wait_time'] = args.wait_time
    if args.show_dir:
        make_folder(args.show_dir, '--show-dir')
        cfg.visualizer['save_dir'] = args.show_dir


def augment(cfg: Config) -> None:
    """Replace the test pipeline and the model by those for test-time augmentation.

    Raises:
        ConfigError: The config has none.
    """
    for key in ('tta_pipeline', 'tta_model'):
        if cfg.get(key) is None:
            raise ConfigError(f'--tta needs a {key} in the config, as configs/_base_ has them')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


if __name__ == '__main__':
    main()
