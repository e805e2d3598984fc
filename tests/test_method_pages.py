"""The methods' table against the configs, the classes and the pages that are made from it."""

import inspect
import json
import re
from pathlib import Path

import make_method_pages
import pytest
from helpers import CONFIGS, ROOT

from bdd_seg import losses
from bdd_seg.runtime.upstream.configs import load_config

TABLE = make_method_pages.load_table()
METHODS = TABLE['methods']
PAGES = make_method_pages.pages(TABLE)
NO_METHODS = {'_base_', 'pspnet', 'teachers_from_elsewhere'}
FOLDERS = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - NO_METHODS
KEYS = {'title', 'class', 'paper', 'compares', 'labels', 'balance', 'losses', 'defaults'}
OPTIONAL = {'written_by_hand', 'by_pair', 'defaults_are', 'composed', 'notes', 'differences'}


def default(loss: type, name: str):
    """The default of an argument of a class, or of the base class that takes it."""
    for base in loss.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        if name in parameters:
            return parameters[name].default
    raise AssertionError(f'{loss.__name__} has no argument {name!r}')


def test_each_folder_of_configs_has_an_entry():
    assert set(METHODS) == FOLDERS
    assert {file.parent.name for file in PAGES} == FOLDERS - {'bdd'}
    for recipe in TABLE['recipes']:
        assert set(recipe['figures']) <= FOLDERS
    assert {path.stem for path in (CONFIGS / '_base_/pairs').glob('*.py')} == set(TABLE['pairs'])


@pytest.mark.parametrize('file', PAGES, ids=lambda file: file.parent.name)
def test_each_page_is_the_one_that_the_script_makes(file):
    assert file.read_text() == PAGES[file], 'run python docs/make_method_pages.py'


@pytest.mark.parametrize('folder', METHODS)
def test_an_entry_agrees_with_its_class(folder):
    method = METHODS[folder]
    assert set(method) - OPTIONAL == KEYS
    loss = getattr(losses, method['class'])
    assert method['class'] in [settings['type'] for settings in method['losses']]
    assert method['labels'] == loss.needs_labels
    assert method['balance'] == issubclass(loss, losses.BalancedLoss)
    assert 'loss_weight' in method['defaults']
    for name, value in method['defaults'].items():
        assert default(loss, name) == value, name
    if method['balance'] and folder != 'bdd':
        assert default(loss, 'reverse_weight') == 0


@pytest.mark.parametrize(
    'folder, name', [(folder, path.stem) for folder in METHODS for path in (CONFIGS / folder).glob('*.py')]
)
def test_a_config_has_the_losses_of_the_table(folder, name):
    cfg = load_config(CONFIGS / folder / f'{name}.py')
    found = [dict(loss) for loss in cfg.model.distill_losses]
    assert found == make_method_pages.losses_of(folder, METHODS[folder], name)
    for loss in found:
        if 'num_classes' in loss:
            assert loss['num_classes'] == cfg.model.decode_head.num_classes
        for key in set(loss) - {'type', 'student_tap', 'teacher_tap'}:
            value = default(getattr(losses, loss['type']), key)
            assert value is inspect.Parameter.empty or value != loss[key], f'{key} repeats the default'
    page = (CONFIGS / folder / 'README.md').read_text()
    assert f'`{name}.py`' in page


@pytest.mark.parametrize('folder', sorted(FOLDERS - {'bdd'}))
def test_the_lines_of_a_page_are_those_of_its_config(folder):
    page = (CONFIGS / folder / 'README.md').read_text()
    [lines] = re.findall(r'```python\n(distill_losses=.*?)\n```', page, re.DOTALL)
    [config] = (CONFIGS / folder).glob(f'{folder}_*cityscapes*.py')
    text = config.read_text()
    assert re.sub(r'\s', '', lines) in re.sub(r'\s', '', text)


def links(text: str) -> list[str]:
    return re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'[a-z]+://[^\s)`\'"]+', text)


@pytest.mark.parametrize(
    'file',
    sorted([*CONFIGS.glob('*/README.md'), ROOT / 'docs/which_loss.md']),
    ids=lambda file: file.parent.name,
)
def test_links_are_https_or_lead_to_a_file(file):
    found = links(file.read_text())
    assert found
    for link in found:
        if '://' in link:
            assert link.startswith('https://'), link
        else:
            path, _, heading = link.partition('#')
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), link
            if heading:
                titles = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
                slugs = [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles]
                assert heading in slugs, link


def test_links_of_the_table_are_https():
    papers = [method['paper']['link'] for method in METHODS.values()]
    for link in [*papers, *(recipe['link'] for recipe in TABLE['recipes'])]:
        assert link.startswith('https://'), link


REPORTS = ''.join(
    file.read_text()
    for file in [*(ROOT / 'benchmarks/studies').glob('*/report.md'), ROOT / 'docs/results.md']
)


def figures(file: Path) -> list[str]:
    """Return the gains with an interval and the scores with a deviation in a text."""
    return re.findall(r'[+-][\d.]+ \[[+-][^]]+\]|[\d.]+ ± [\d.]+', file.read_text())


@pytest.mark.parametrize(
    'file',
    [ROOT / 'README.md', CONFIGS / 'bdd/README.md', *(ROOT / 'docs').glob('*.md')],
    ids=lambda file: file.name,
)
def test_scores_and_gains_in_texts_are_those_of_the_studies(file):
    for figure in figures(file):
        assert figure in REPORTS, figure


def test_there_are_such_figures():
    assert len(figures(ROOT / 'README.md')) >= 8


def test_the_guide_lists_each_loss_once():
    """docs/which_loss.md says of each loss whether it needs labels and takes the balance."""
    rows = re.findall(r'^\| `(\w+)` \| (.+) \|$', (ROOT / 'docs/which_loss.md').read_text(), re.M)
    names = [name for name, _ in rows]
    abstract = {'BalancedLoss', 'DistillLoss'}
    classes = {name for name in losses.__all__ if name.endswith('Loss')} - abstract
    assert sorted(names) == sorted(classes)
    for name, cells in rows:
        loss = getattr(losses, name)
        *_, labels, balance = cells.split(' | ')
        assert (labels == 'yes') == loss.needs_labels, name
        assert (balance == 'yes') == issubclass(loss, losses.BalancedLoss), name


def test_costs_in_the_guide_are_those_that_were_measured():
    rows = json.loads((ROOT / 'benchmarks/results/cpu_losses_2x19x64x128.json').read_text())['rows']
    measured: dict[str, float] = {}
    for row in rows:  # of a loss with modes the first is the default
        measured.setdefault(row['name'].split(',')[0], row['details'].get('% of a step', 0))
    text = (ROOT / 'docs/which_loss.md').read_text()
    found = re.findall(r'^\| `(\w+)` \| [^|]+ \| ([\d.]+) %', text, re.M)
    assert {name for name, _ in found} == {method['class'] for method in METHODS.values()}
    for name, cost in found:
        assert float(cost) == pytest.approx(measured[name], rel=0.06), name
