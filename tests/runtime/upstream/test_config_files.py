from pathlib import Path

import mmseg.registry
import pytest
from helpers import CONFIGS
from mmengine import registry as registries
from mmengine.registry import DefaultScope, Registry

from bdd_seg.cli.config_check import check_config
from bdd_seg.errors import ConfigError
from bdd_seg.registry import REGISTRIES
from bdd_seg.runtime.upstream.configs import leaf_datasets, load_config, walk


def test_mmsegs_own_configs(tmp_path):
    name = 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    assert load_config(name).model.decode_head.type == 'ASPPHead'
    heir = tmp_path / 'heir.py'
    heir.write_text(f'_base_ = {name!r}\nmodel = dict(backbone=dict(depth=50))')
    cfg = load_config(heir)
    assert (cfg.model.decode_head.type, cfg.model.backbone.depth) == ('ASPPHead', 50)


DEMO = 'bdd_pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'


def test_our_own_configs_by_name(tmp_path):
    by_name, by_path = load_config(f'bdd_seg::bdd/{DEMO}'), load_config(CONFIGS / 'bdd' / DEMO)
    assert Path(by_name.model.teacher.config).samefile(by_path.model.teacher.config)
    by_name.model.teacher.config = by_path.model.teacher.config
    assert by_name.to_dict() == by_path.to_dict()
    with pytest.raises(ConfigError, match=r"config 'bdd_seg::kd/kd.py' does not exist"):
        load_config('bdd_seg::kd/kd.py')
    with pytest.raises(ConfigError, match=f'does not exist. Did you mean {DEMO}'):
        load_config(f'bdd_seg::bdd/{DEMO[1:]}')


def test_parts_inherited_by_name_are_built(tmp_path):
    heir = tmp_path / 'heir.py'
    heir.write_text(f"_base_ = 'bdd_seg::bdd/{DEMO}'\nmodel = dict(decode_head=dict(dropout_ratio=0.0))")
    cfg = load_config(heir)
    assert (cfg.model._scope_, cfg.default_hooks.finite._scope_) == ('bdd_seg', 'bdd_seg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = [
            registry.build(part)
            for registry, part in (
                (registries.MODELS, cfg.model),
                (registries.HOOKS, cfg.default_hooks.finite),
                (registries.HOOKS, cfg.default_hooks.timer),
                (registries.TRANSFORMS, cfg.train_pipeline[0]),
            )
        ]
    names = [type(part).__name__ for part in built]
    assert names == ['SegDistiller', 'FiniteLossHook', 'IterTimerHook', 'LoadImageFromFile']
    assert built[0].decode_head.dropout is None
    check_config(cfg, 'train')


def test_each_of_mmsegs_registries_has_its_child():
    parents = [node for node in vars(mmseg.registry).values() if isinstance(node, Registry)]
    assert [registry.parent for registry in REGISTRIES] == parents
    assert all(registry.scope == 'bdd_seg' and not registry.module_dict for registry in REGISTRIES)
    for parent in parents:
        assert parent.root._search_child('bdd_seg').parent is parent


def test_a_config_that_does_not_exist():
    path = CONFIGS / 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1025.py'
    expected = 'does not exist. Did you mean pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    with pytest.raises(ConfigError, match=expected):
        load_config(path)


def message_of(folder, **texts) -> str:
    """Return what is said of a config ``a.py`` among other files; FOLDER in it stands for the folder."""
    for name, text in texts.items():
        (folder / f'{name}.py').write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(folder / 'a.py')
    assert '\n' not in str(caught.value)
    return str(caught.value).replace(str(folder), 'FOLDER')


# The text of a.py, b.py and c.py, and the message.
CHAINS = {
    'a missing base': (
        ["_base_ = ['./absent.py']"],
        "config 'FOLDER/a.py' inherits from a file that does not exist: 'FOLDER/absent.py'.",
    ),
    'a missing base of a base': (
        ["_base_ = 'b.py'", "_base_ = ['c.py', 'absent.py']", 'x = 1'],
        "config 'FOLDER/b.py' inherits from a file that does not exist: 'FOLDER/absent.py'.",
    ),
    'a file that the config itself opens': (
        ["_base_ = 'b.py'", "x = 1\ny = open('FOLDER/absent.txt').read()"],
        "config 'FOLDER/b.py', line 2: FileNotFoundError: [Errno 2] No such file or directory: "
        "'FOLDER/absent.txt'",
    ),
    'a circle of one': (
        ["_base_ = 'a.py'"],
        "config 'FOLDER/a.py' inherits from itself: 'FOLDER/a.py' → 'FOLDER/a.py'",
    ),
    'a circle of two behind the first': (
        ["_base_ = 'b.py'", "_base_ = 'c.py'", "_base_ = './b.py'"],
        "config 'FOLDER/a.py' inherits from itself: 'FOLDER/a.py' → 'FOLDER/b.py' → 'FOLDER/c.py' → "
        "'FOLDER/b.py'",
    ),
    'an endless recursion that is no circle': (
        ["_base_ = 'b.py'", 'x = 1\nf = lambda: f()\ny = f()'],
        "config 'FOLDER/b.py', line 2: RecursionError: maximum recursion depth exceeded",
    ),
    'a syntax error': (
        ['x = 1\ny = (', ''],
        "config 'FOLDER/a.py', line 2: SyntaxError: '(' was never closed",
    ),
    'a syntax error in a base of a base': (
        ["_base_ = 'b.py'", "_base_ = 'c.py'", 'x = = 1'],
        "config 'FOLDER/c.py', line 1: SyntaxError: invalid syntax",
    ),
    'an error in a base of a base': (
        ["_base_ = 'b.py'", "_base_ = 'c.py'", 'x = 1\n\ny = z'],
        "config 'FOLDER/c.py', line 3: NameError: name 'z' is not defined",
    ),
    'an import of a base': (
        ["_base_ = 'b.py'", 'x = 1\nclasses = __import__("my_absent_helper").CLASSES'],
        "config 'FOLDER/b.py', line 2: ModuleNotFoundError: No module named 'my_absent_helper'",
    ),
    'custom_imports that are no dict': (
        ["custom_imports = ['bdd_seg']"],
        "config 'FOLDER/a.py': custom_imports must be dict(imports=[...]), got ['bdd_seg']",
    ),
}


@pytest.mark.parametrize('case', CHAINS)
def test_the_file_and_line_of_an_error(tmp_path, case):
    texts, expected = CHAINS[case]
    texts = [text.replace('FOLDER', str(tmp_path)) for text in texts]
    assert message_of(tmp_path, **dict(zip('abc', texts, strict=False))).startswith(expected)


def test_a_missing_base_of_mmseg(tmp_path):
    said = message_of(tmp_path, a="_base_ = 'mmseg::pspnet/absent.py'")
    assert said.startswith("config 'FOLDER/a.py' inherits from a file that does not exist: '")
    assert said.endswith("/mmseg/.mim/configs/pspnet/absent.py'. Look at its _base_")
    said = message_of(tmp_path, a="_base_ = 'bdd_seg::pspnet/absent.py'")
    assert said == (
        "config 'FOLDER/a.py' inherits from a file that does not exist: "
        f"'{CONFIGS}/pspnet/absent.py'. Look at its _base_"
    )


def test_the_config_is_shown_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / 'a.py').write_text('x = = 1')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^config 'a.py', line 1: SyntaxError: invalid syntax$"):
        load_config('a.py')


@pytest.mark.parametrize(
    'module, content, expected',
    [
        (
            'my_absent_loss',
            None,
            "names 'my_absent_loss', which is not found. .* PYTHONPATH=. Else pip install",
        ),
        ('bdd_seg.absent', None, "names 'bdd_seg.absent', which is not found.*=.$"),
        (
            'my_loss_a',
            'import my_absent_helper',
            "my_loss_a' cannot be imported: ModuleNotFoundError: No module named 'my_absent_helper'$",
        ),
        (
            'my_loss_b',
            'from bdd_seg.losses import AbsentLoss',
            "my_loss_b' cannot be imported: ImportError: cannot import name 'AbsentLoss' from 'bdd_seg.lo",
        ),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, module, content, expected):
    monkeypatch.syspath_prepend(tmp_path)
    if content is not None:
        (tmp_path / f'{module}.py').write_text(content)
    config = tmp_path / 'config.py'
    config.write_text(f"custom_imports = dict(imports=['bdd_seg', {module!r}])")
    with pytest.raises(ConfigError, match=f'config .*config.py.: custom_imports.*{expected}'):
        load_config(config)
    config.write_text(f'custom_imports = dict(imports=[{module!r}], allow_failed_imports=True)')
    assert load_config(config).custom_imports.imports == [module]


def test_walk():
    cfg = {'type': 'A', 'b': [{'c': 1}, ({'d': {}},)], 'e': 2}
    found = [key for key, _ in walk(cfg, 'model')]
    assert found == ['model', 'model.b.0', 'model.b.1.0', 'model.b.1.0.d']


def test_leaf_datasets():
    leaf = {'type': 'A'}
    settings = {'datasets': [leaf, {'dataset': leaf}]}
    assert [*leaf_datasets(settings, 'x')] == [(leaf, 'x.datasets'), (leaf, 'x.datasets.dataset')]
