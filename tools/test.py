"""Evaluate a segmentor, distilled or plain. The flags are those of mmseg's own tools/test.py."""

import argparse
from pathlib import Path

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
from mmengine.config import Config
from mmengine.runner import Runner

from bdd_seg.engine import add_config_arguments, check_datasets, config_from, run_tool
from bdd_seg.errors import ConfigError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='folder to save the predicted label maps in')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder to save painted images in')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between shown images (default: 2)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: several scales and flips')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = config_from(args)
    cfg.load_from = args.checkpoint
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise ConfigError(f'checkpoint {args.checkpoint!r} does not exist')
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
    if args.out is not None:
        cfg.test_evaluator['output_dir'] = args.out
        cfg.test_evaluator['keep_results'] = True
    check_datasets(cfg, 'test_dataloader')
    Runner.from_cfg(cfg).test()


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(
            '--show and --show-dir need default_hooks.visualization=dict(type="SegVisualizationHook")'
        )
    hook['draw'] = True
    if args.show:
        hook['show'] = True
        hook['wait_time'] = args.wait_time
    if args.show_dir:
        cfg.visualizer['save_dir'] = args.show_dir


if __name__ == '__main__':
    run_tool(main)
