"""Who may import whom: the rooms of the package, from the mathematics up to the commands."""

import ast
from pathlib import Path

import pytest

import bdd_seg

PACKAGE = Path(bdd_seg.__file__).parent
ALLOWED = {
    'errors': set(),
    'losses': {'errors'},
    'runtime': {'errors'},
    'registry': set(),
    'datasets': {'errors', 'runtime'},
    'distill': {'errors', 'losses', 'runtime'},
    'teachers': {'errors', 'losses', 'runtime', 'distill'},
    'study': {'errors', 'losses', 'runtime', 'distill', 'teachers', 'datasets'},
    'deploy': {'errors', 'runtime', 'distill', 'teachers', 'datasets'},
    'report': {'errors', 'runtime', 'distill', 'teachers', 'datasets', 'study', 'deploy'},
    'cli': {'errors', 'losses', 'runtime', 'distill', 'teachers', 'datasets', 'study', 'deploy', 'report'},
}


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does so."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f'{node.module}.{alias.name}' for alias in node.names]
    return {name.split('.')[1] for name in names if name.startswith('bdd_seg.')}


@pytest.mark.parametrize('room', ALLOWED)
def test_a_room_imports_only_from_the_rooms_below(room):
    place = PACKAGE / room
    files = sorted(place.rglob('*.py')) if place.is_dir() else [PACKAGE / f'{room}.py']
    wrong = {
        str(file.relative_to(PACKAGE)): found
        for file in files
        if (found := imported_rooms(file) - ALLOWED[room] - {room})
    }
    assert files and not wrong


def test_every_room_has_its_rule():
    folders = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    files = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
    assert folders | files == ALLOWED.keys()
