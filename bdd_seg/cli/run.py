"""Run a Python script, such as one of mmseg's own tools, with this package imported.

mmengine reads a config's _base_ before its custom_imports. So mmseg's tools know names such as
bdd_seg::FOLDER/NAME.py and mmseg::FOLDER/NAME.py only where bdd_seg is imported before they begin.
"""

import argparse
import os
import runpy
import sys

import bdd_seg  # noqa: F401  for what its import does


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('script', help='a Python file')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its own arguments')
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    args = parse_args()
    if not os.path.isfile(args.script):
        sys.exit(f'error: script {args.script!r} does not exist')
    sys.argv = [args.script, *args.arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(args.script)))  # as Python does
    runpy.run_path(args.script, run_name='__main__')


if __name__ == '__main__':
    main()
