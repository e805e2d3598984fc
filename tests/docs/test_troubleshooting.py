"""docs/troubleshooting.md has the cause of each error that does not say what to do."""

import ast
import re
from collections.abc import Iterator

import pytest
from helpers import ROOT

PAGE = (ROOT / 'docs/troubleshooting.md').read_text()
ENTRIES = re.findall(r'^\| `(.+?)` \|', PAGE, re.MULTILINE)

# A message with one of these says what to do.
ADVICE = re.compile(
    r'\b(add|allow|ask for|begin|choose|compare|convert|copy|delete|ends? in|expected|export|give|ignore|'
    r'install|keep|leave|make|must|name|needs?|pass|put|remove|run|say|set|take|train|use|wait|write)\b',
    re.IGNORECASE,
)


def template(node: ast.expr) -> str:
    """Return the text of a string, with … for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(str(part.value) if isinstance(part, ast.Constant) else '…' for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return '…'


def messages() -> Iterator[tuple[str, str]]:
    """Yield place and text of each error's message that has text of its own."""
    for path in sorted((ROOT / 'bdd_seg').rglob('*.py')):
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
            text = template(node.args[0])
            if (name.endswith('Error') or name == '_error') and len(re.sub('[^A-Za-z]', '', text)) >= 12:
                yield f'{path.relative_to(ROOT)}:{node.lineno}', text


MESSAGES = dict(messages())


def fits(entry: str, text: str) -> bool:
    """Return True if the parts of an entry between its … come about in the text, in their order."""
    return re.search('.*'.join(map(re.escape, entry.strip('…').split('…'))), text, re.DOTALL) is not None


def test_there_are_messages():
    assert len(MESSAGES) > 300


def test_each_message_says_what_to_do_or_has_its_entry():
    lacking = [
        f'{place}: {text}'
        for place, text in MESSAGES.items()
        if not ADVICE.search(text) and not any(fits(entry, text) for entry in ENTRIES)
    ]
    assert not lacking, 'add to docs/troubleshooting.md:\n' + '\n'.join(lacking)


@pytest.mark.parametrize('entry', ENTRIES)
def test_each_entry_is_of_a_message(entry):
    assert any(fits(entry, text) for text in MESSAGES.values())
