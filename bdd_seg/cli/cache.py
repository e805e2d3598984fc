"""Run a teacher once over the whole training images and keep its outputs, to train without it.

Training reads them with tools/train.py CONFIG --cfg-options model.teacher.type=CachedTeacher
model.teacher.cache=FOLDER. An interrupted run goes on where it stopped; so does one after more images came.
"""

import argparse
import logging
from pathlib import Path

import torch
from mmengine.dist import init_dist
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from bdd_seg.cli.arguments import add_config_arguments, config_from
from bdd_seg.cli.config_check import check_datasets
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.parts import check_parts
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.console import quiet_warnings
from bdd_seg.runtime.upstream.processes import join_processes
from bdd_seg.teachers.cached.store import TeacherCache
from bdd_seg.teachers.cached.write import Images, build_model, describe, open_cache, write_outputs


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--out', help='folder of the cache (default: WORK_DIR/teacher_cache)')
    parser.add_argument(
        '--taps', nargs='+', default=[], help='outputs to keep beside those the losses compare'
    )
    parser.add_argument('--workers', type=int, default=2, help='processes that load images (default: 2)')
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    if not args.verbose:
        quiet_warnings()
    cfg = config_from(args)
    for key in ('model', 'train_dataloader', 'val_dataloader'):
        if cfg.get(key) is None:
            why = ', whose pipeline loads the whole images' if key == 'val_dataloader' else ''
            raise ConfigError(f'{cfg.filename} has no {key}{why}')
    if args.workers < 0:
        raise ConfigError(f'--workers must be at least 0, not {args.workers}')
    init_default_scope('mmseg')
    MMLogger.get_instance('mmengine', log_level=logging.INFO if args.verbose else logging.WARNING)
    join_processes(cfg)
    if args.launcher != 'none' and not torch.distributed.is_initialized():
        init_dist(args.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    check_parts(cfg, ('model', 'train_dataloader', 'val_dataloader'), train=True)
    check_datasets(cfg, 'train_dataloader')
    images = Images(cfg)
    model = build_model(cfg, args.taps)
    cache = TeacherCache(args.out or Path(cfg.work_dir) / 'teacher_cache')
    manifest = open_cache(cache, describe(model, images))
    if manifest.strides.keys() != set(model.teacher.taps):  # of all its files, those that come now included
        model.teacher.build(model, manifest.strides)
    write_outputs(cache, manifest, model, images, args.workers)


if __name__ == '__main__':
    main()
