"""Run a study: trainings and evaluations by tools/train.py and tools/test.py, then tables and plots of them.

A study file names methods, their settings to choose from, seeds, and what is measured; benchmarks/studies
holds examples, bdd_seg/study/settings.py explains every key. Safe to interrupt: the same command goes on
where it stopped, or runs what a changed file asks for in addition.
"""

import argparse
from pathlib import Path

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.runtime.guards.work_dir import hold_work_dir
from bdd_seg.study.configs import check_comparable
from bdd_seg.study.results import load_results
from bdd_seg.study.session import Session
from bdd_seg.study.settings import load_study


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='study file (YAML)')
    parser.add_argument(
        '--work-dir', type=Path, help='folder of runs and results (default: work_dirs/studies/NAME)'
    )
    parser.add_argument(
        '--jobs', type=int, help='runs at once (default: one a GPU; without a GPU, one a CPU core)'
    )
    parser.add_argument(
        '--time-limit', type=float, metavar='MINUTES', help='stop then; the same command goes on from there'
    )
    parser.add_argument(
        '--continue-from',
        type=Path,
        metavar='RESULTS.json',
        help='results of this study from elsewhere: runs with the same config are taken over',
    )
    parser.add_argument('--list', action='store_true', help='print the runs, finished or not, and end')
    parser.add_argument(
        '--report', action='store_true', help='write tables and plots of the finished runs, and end'
    )
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    study = load_study(args.study)
    check_comparable(study)
    folder = args.work_dir or Path('work_dirs/studies') / args.study.stem
    command = study.command or f'python tools/study.py {args.study}'
    session = Session(study, folder, command, args.jobs, args.time_limit)
    if args.list:
        session.list_runs()
    elif args.report:
        session.report()
    else:
        with hold_work_dir(folder):
            if args.continue_from:
                session.take_over(load_results(args.continue_from))
            session.run()


if __name__ == '__main__':
    main()
