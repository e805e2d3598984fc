"""Write one page that shows whether distillation helped, where, and what it costs.

RUN is a work dir of bdd-seg train, the folder of a study or of the demo, a checkpoint in a work dir, or an
exported file. All of them are evaluated on the same validation images. The page is one file that opens from
disk. Evaluations are kept beside the networks, so that a second call is quick.
"""

import argparse
import shlex
import sys
from pathlib import Path

from mmengine.registry import init_default_scope

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.errors import ConfigError
from bdd_seg.report.collect import Options, collect
from bdd_seg.report.page import check_packages, told_apart, write_page
from bdd_seg.runtime.upstream.console import quiet_libraries


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs', nargs='+', metavar='RUN', help='a work dir, a study folder, a checkpoint, or an exported file'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('report.html'), help='the page (default: report.html)'
    )
    parser.add_argument(
        '--images',
        type=int,
        default=12,
        metavar='N',
        help='pictures of the N images helped most, and of the N hurt most, at most (default: 12)',
    )
    add_evaluation_arguments(parser)
    return parser.parse_args()


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose checkpoints and images."""
    parser.add_argument(
        '--checkpoint',
        metavar='NAME',
        help="the checkpoint in each work dir, such as 'best_*.pth' (default: the latest)",
    )
    parser.add_argument(
        '--max-images', type=int, metavar='M', help='evaluate on M images, spread over the validation set'
    )
    parser.add_argument(
        '--config',
        metavar='CONFIG.py',
        help="evaluate on the validation images of this config (default: those of the runs' own configs)",
    )


def prepare(args: argparse.Namespace) -> None:
    """Check the flags, and quiet the libraries.

    Raises:
        ConfigError: A number is out of its range.
    """
    if args.max_images is not None and args.max_images < 1:
        raise ConfigError(f'--max-images must be at least 1, not {args.max_images}')
    quiet_libraries()
    init_default_scope('mmseg')


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    prepare(args)
    if args.images < 0:
        raise ConfigError(f'--images must be at least 0, not {args.images}')
    if args.out.is_dir() or not args.out.parent.is_dir():
        where = 'is a folder' if args.out.is_dir() else 'is in a folder that does not exist'
        raise ConfigError(f'--out {str(args.out)!r} {where}. Give a file, such as report.html')
    if args.out.suffix.lower() not in ('.html', '.htm'):
        raise ConfigError(f'--out {str(args.out)!r} is no .html file. Give one, such as report.html')
    if args.out.resolve() in [Path(run).expanduser().resolve() for run in args.runs]:
        raise ConfigError(f'--out {str(args.out)!r} is one of the networks. Give another file')
    check_packages()  # rather now than after the evaluation
    options = Options(
        pictures=args.images,
        checkpoint=args.checkpoint,
        max_images=args.max_images,
        config=args.config,
        command=shlex.join(['bdd-seg', 'report', *sys.argv[1:]]),
    )
    report = collect(args.runs, options)
    write_page(report, args.out)
    for network in report.networks:
        if network.evaluation is None:
            print(f'{network.label}: {network.note}')
    named = told_apart(report.networks)
    scores = [f'{network.label} {network.miou:.2f}' for network in named if network.miou is not None]
    print(f'mIoU: {", ".join(scores)}' if scores else 'no network could be evaluated')
    print(f'{args.out} ({args.out.stat().st_size / 1e6:.1f} MB): open it in a browser')


if __name__ == '__main__':
    main()
