"""Commands, Python and YAML in the pages are parsed, and so are the files for GitHub."""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from bdd_seg.errors import ConfigError
from bdd_seg.study.settings import Study

PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'benchmarks/README.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'configs').glob('*/README.md')),
]
# tools/NAME.py → module of bdd_seg.cli
TOOLS = {'cache_teacher': 'cache', 'make_street_scenes': 'scenes'}
# Commands of others, which have no parser here.
OTHERS = {
    '.',
    'cd',
    'export',
    'git',
    'hf',
    'ls',
    'pip',
    'pre-commit',
    'srun',
    'tensorboard',
    'wandb',
    'mlflow',
}


def blocks(language: str) -> list:
    """Return a parameter (page, text) for each block of this language."""
    return [
        pytest.param(text, id=f'{page.relative_to(ROOT)}-{number}')
        for page in PAGES
        for number, text in enumerate(
            re.findall(rf'^ *```{language}\n(.*?)^ *```', page.read_text(), re.DOTALL | re.MULTILINE)
        )
    ]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a block of a shell."""
    text = re.sub(r'\\\n', ' ', text)
    text = re.sub(r'\$\([^()]*(\(.*?\))?[^()]*\)', 'X', text)  # the output of another command
    for line in text.splitlines():
        if line.startswith('(while'):
            continue
        for part in re.split(r'\s&&\s', line):
            words = shlex.split(part, comments=True)
            while words and re.match(r'[A-Z_0-9]+=', words[0]):
                words.pop(0)
            if words:
                yield words


def parser_of(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the module with the parser of a command, None where it has none here, and its arguments."""
    program, *rest = words
    if program in ('torchrun', 'srun'):
        script = next(i for i, word in enumerate(rest) if word.startswith('tools/') or word == '-m')
        program, rest = 'python', rest[script:]
    if program == 'bdd-seg':
        return f'bdd_seg.cli.{rest[0]}', rest[1:]
    if program not in ('python', 'python3'):
        return None, words
    if rest[0] == '-m' and rest[1].startswith('bdd_seg.cli.'):
        return rest[1], rest[2:]
    path = Path(rest[0])
    if path.parent == Path('tools'):
        assert (ROOT / path).exists(), path
        return f'bdd_seg.cli.{TOOLS.get(path.stem, path.stem)}', rest[1:]
    if path.parent == Path('benchmarks'):
        return path.stem, rest[1:]
    return None, words


@pytest.mark.parametrize('text', blocks('bash'))
def test_commands_are_accepted(text, monkeypatch, capsys):
    for words in commands(text):
        module, arguments = parser_of(words)
        if module is not None:
            monkeypatch.setattr(sys, 'argv', [words[0], *arguments])
            try:
                importlib.import_module(module).parse_args()
            except SystemExit:
                pytest.fail(f'{" ".join(words)}: {capsys.readouterr().err}')
            except ConfigError as error:  # on a machine without a GPU
                assert 'torch sees no GPU' in str(error)
        elif words[0] == 'make':
            targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
            assert {word for word in words[1:] if '=' not in word} <= {*targets}, words
        elif words[0] not in OTHERS:
            assert words[0] in ('python', 'python3', 'pytest'), words
        for word in words:
            path = word.split('=')[-1].split('::')[0]
            if re.match(r'(configs|benchmarks|tests|docs|tools)/[^$<>*]*$', path):
                assert (ROOT / path).exists() or 'docs/_build' in path, word


@pytest.mark.parametrize('text', blocks('python'))
def test_python_is_python(text):
    lines = text.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    text = '\n'.join(line[indent:] for line in lines)
    try:
        ast.parse(text)
    except SyntaxError:
        ast.parse(f'dict({text})')  # a part of a config: one argument after the other


@pytest.mark.parametrize('text', blocks('yaml'))
def test_study_files_have_known_keys(text):
    content = yaml.safe_load(text)
    known = {field.alias or name for name, field in Study.model_fields.items()}
    assert content.keys() <= known
    if 'title' in content:
        Study.model_validate(content)


def test_the_first_page_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_every_guide_is_in_the_contents():
    contents = (ROOT / 'docs/index.md').read_text()
    listed = {*re.findall(r'^([a-z_]+)$', contents, re.MULTILINE)}
    assert listed == {path.stem for path in (ROOT / 'docs').glob('*.md')} - {'index'}


def test_the_workflow_runs_the_readmes_command_on_each_python():
    workflow = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())
    test = workflow['jobs']['test']
    assert test['strategy']['matrix']['python'] == [f'3.{minor}' for minor in range(10, 15)]
    assert [step['run'] for step in test['steps'] if 'run' in step] == ['make test']
    assert [step['run'] for step in workflow['jobs']['docs']['steps'] if 'run' in step] == ['make docs']


def test_pre_commit_runs_the_checks_of_make_test():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    lines = (ROOT / 'Makefile').read_text()
    for hook in hooks:
        command = hook['entry'].replace('.venv/bin/', '$(BIN)/').replace(' --force-exclude', '')
        assert command in lines


def test_the_forms_for_issues_are_whole():
    for file in (ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(file.read_text())
        assert {'name', 'description', 'body'} <= form.keys()
        assert all(part['attributes']['label'] for part in form['body'])


def test_the_citation_has_what_readers_of_it_need():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0'
    assert {'title', 'authors', 'version', 'license', 'message'} <= citation.keys()
    paper = citation['preferred-citation']
    assert '2501.07804' in paper['url'] and len(paper['authors']) == 5


def test_the_versions_agree():
    from bdd_seg import __version__

    assert f"version='{__version__}'" in (ROOT / 'setup.py').read_text()
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == __version__
    assert f'bdd_seg-{__version__}-py3' in (ROOT / 'docs/quick_start.md').read_text()
    assert re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[1] == __version__
