"""The demo from the wheel alone, in an empty folder: about ten minutes on two cores."""

from test_wheel import installed, run  # noqa: F401  the first is a fixture


def test_the_demo_of_the_wheel(installed, tmp_path):  # noqa: F811
    printed = run(installed, tmp_path, 'demo')
    assert 'distilled against alone: +' in printed
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'work_dirs'}
