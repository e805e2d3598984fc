"""Compare two trained networks in the terminal: scores, cost, classes, confusions, configs.

A and B are work dirs of bdd-seg train, checkpoints in one, or exported files. Both are evaluated on the same
validation images. Evaluations are kept beside the networks, so that a second call is quick.
"""

import argparse

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.report import add_evaluation_arguments, prepare
from bdd_seg.errors import ConfigError
from bdd_seg.report.collect import Options, collect
from bdd_seg.report.runs import find_runs
from bdd_seg.report.terminal import print_comparison


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('first', metavar='A', help='a work dir, a checkpoint in one, or an exported file')
    parser.add_argument('second', metavar='B', help='another one, whose gain over A is shown')
    add_evaluation_arguments(parser)
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    prepare(args)
    sources = [_source(path, args.checkpoint) for path in (args.first, args.second)]
    if sources[0] == sources[1]:
        raise ConfigError(f'A and B are the same network, {sources[0]!r}. Give two')
    options = Options(
        pictures=0,
        checkpoint=args.checkpoint,
        max_images=args.max_images,
        config=args.config,
        find_teacher=False,
    )
    report = collect(sources, options)
    networks = {network.source: network for network in report.networks}
    first, second = (networks[source] for source in sources)
    for network in (first, second):
        if network.evaluation is None:
            raise ConfigError(f'{network.source}: {network.note}')
    print_comparison(report, first, second)


def _source(path: str, checkpoint: str | None) -> str:
    """Return the work dir or file of the one network that a path names.

    Raises:
        ConfigError: It names several, or one that has no weights.
    """
    runs = find_runs([path], checkpoint).runs
    if len(runs) != 1:
        names = ', '.join(repr(str(run.path)) for run in runs[:6]) + (', …' if len(runs) > 6 else '')
        raise ConfigError(f'{path!r} holds {len(runs)} networks, and two are compared. Give one of {names}')
    if runs[0].checkpoint is None:
        raise ConfigError(f'{path!r} {runs[0].note or "has no checkpoint"}: there is nothing to compare yet')
    return str(runs[0].path)


if __name__ == '__main__':
    main()
