"""docs/quick_start.ipynb, run cell by cell with fewer images and iterations."""

import json
import shlex
import subprocess
import sys

from helpers import ROOT
from warm_python import warm_python

NOTEBOOK = json.loads((ROOT / 'docs/quick_start.ipynb').read_text())
SMALLER = {'scenes --out': 'scenes --train 8 --val 2 --workers 1 --out', '300': '2', '150': '1'}


def test_the_notebook_runs(tmp_path):
    code = []
    for cell in NOTEBOOK['cells']:
        if cell['cell_type'] == 'code':
            text = ''.join(cell['source'])
            for found, smaller in SMALLER.items():
                text = text.replace(found, smaller)
            if text.startswith('!bdd-seg '):
                _, command, *arguments = shlex.split(text.replace('\\\n', ''))
                line = [warm_python(), '-m', f'bdd_seg.cli.{command}', *arguments]
                text = f'done = subprocess.run({line}, capture_output=True, text=True)\n'
                text += 'assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]\n'
                text += 'print(done.stdout)'
            code.append(text)
    start = "import subprocess\nimport matplotlib\nmatplotlib.use('agg')\n"
    program = start + '\n'.join(code) + "\nprint('classes', sorted(set(prediction.flatten().tolist()))[:3])"
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'mIoU' in done.stdout and 'classes [' in done.stdout
    assert (tmp_path / 'work_dirs/distilled/iter_1.pth').exists()


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']
    assert cells and all(cell['outputs'] == [] and cell['execution_count'] is None for cell in cells)
