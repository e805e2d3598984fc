"""The street scenes: what is in them, what is written, and what is refused."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import run

from bdd_seg.datasets.street_scenes import (
    CLASSES,
    GENERATOR_VERSION,
    IGNORED,
    MANIFEST,
    PALETTE,
    ROAD,
    SKY,
    colour_labels,
    contact_sheet,
    draw_scene,
    scene_paths,
    scene_rng,
    write_dataset,
    writer,
)

TOOL = Path(__file__).parents[2] / 'tools' / 'make_street_scenes.py'
SMALL = {'height': 48, 'width': 96}


@pytest.fixture(scope='module')
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """A modest number of scenes of the default size."""
    return [draw_scene(scene_rng(0, 'train', index)) for index in range(60)]


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def run_tool(monkeypatch: pytest.MonkeyPatch, *args: object) -> int | str | None:
    """Run the tool in this process, for its import takes seconds; return what it exits with."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as stop:
        return stop.code
    return 0


def test_equal_generators_draw_equal_scenes_and_others_do_not():
    first, again, other = (draw_scene(scene_rng(seed, 'val', 5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.2
    assert (first[1] != draw_scene(scene_rng(1, 'train', 5))[1]).mean() > 0.2


@pytest.mark.parametrize('size', [(64, 128), (97, 131), (256, 512), (200, 60), (32, 400)])
def test_any_size_is_drawn_in_full(size):
    image, labels = draw_scene(np.random.default_rng(3), *size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (labels.shape, labels.dtype) == (size, np.uint8)
    assert {ROAD, SKY} <= set(np.unique(labels).tolist()) <= {*range(19), IGNORED}
    assert image.std() > 15


def test_a_scene_keeps_its_street_at_another_size():
    small, large = (draw_scene(scene_rng(0, 'val', 2), 64 * k, 128 * k)[1] for k in (1, 4))
    assert abs((small == ROAD).mean() - (large == ROAD).mean()) < 0.03


def test_all_classes_occur_and_nothing_else(scenes):
    present = np.array([np.bincount(labels.ravel(), minlength=256) >= 20 for _, labels in scenes])
    share = present.mean(axis=0)
    assert share[[*range(19)]].min() >= 0.08, dict(zip(CLASSES, share, strict=False))
    assert share[IGNORED] > 0.1
    assert share[19:IGNORED].max() == 0


def test_sky_is_above_the_road_and_the_road_fills_the_bottom(scenes):
    rows = np.arange(128)[:, None]
    labels = np.stack([labels for _, labels in scenes])
    assert (rows * (labels == SKY)).sum() / (labels == SKY).sum() < 40
    assert (rows * (labels == ROAD)).sum() / (labels == ROAD).sum() > 80
    bottom = labels[:, -20:]
    assert (bottom == ROAD).sum() / (bottom != IGNORED).sum() > 0.6


def test_pictures_vary_and_are_neither_black_nor_white(scenes):
    brightness = np.array([image.mean() for image, _ in scenes])
    assert brightness.min() > 35
    assert brightness.max() < 215
    assert brightness.std() > 10
    assert np.mean([(image == 255).mean() for image, _ in scenes]) < 0.05


def test_an_image_changes_where_its_labels_change(scenes):
    """Image and labels are drawn together: edges of the labels are edges of the image."""
    ratios = []
    for image, labels in scenes[:20]:
        step = np.abs(np.diff(image.astype(int), axis=1)).sum(axis=2)
        edge = labels[:, 1:] != labels[:, :-1]
        ratios.append(step[edge].mean() / step[~edge].mean())
    assert min(ratios) > 1.5


def test_layout_names_and_colours_on_disk(tmp_path):
    assert write_dataset(tmp_path, 3, 2, seed=7, **SMALL) == 5
    names = {
        f'{kind}/{split}/street/street_000000_{index:06d}_{suffix}.png'
        for split, count in (('train', 3), ('val', 2))
        for index in range(count)
        for kind, suffix in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds'))
    }
    assert set(contents(tmp_path)) == names | {MANIFEST}
    image, labels = draw_scene(scene_rng(7, 'val', 1), **SMALL)
    image_path, labels_path = scene_paths(tmp_path, 'val', 1)
    on_disk = cv2.imread(str(image_path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(on_disk[..., ::-1], image)
    np.testing.assert_array_equal(cv2.imread(str(labels_path), cv2.IMREAD_UNCHANGED), labels)
    settings = {'version': GENERATOR_VERSION, 'seed': 7, 'height': 48, 'width': 96}
    assert json.loads((tmp_path / MANIFEST).read_text()) == settings


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
    seen = []
    write_dataset(tmp_path / 'one', 6, 3, **SMALL, workers=1)
    counter = {'on_scene': lambda done, total: seen.append((done, total))}
    write_dataset(tmp_path / 'two', 6, 3, **SMALL, workers=2, **counter)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
    assert seen == [(done, 9) for done in range(1, 10)]
    write_dataset(tmp_path / 'other', 6, 3, **SMALL, seed=1)
    assert contents(tmp_path / 'one') != contents(tmp_path / 'other')


def test_a_second_call_draws_what_is_missing_and_nothing_else(tmp_path):
    write_dataset(tmp_path, 4, 2, **SMALL)
    whole = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')}
    lost = [scene_paths(tmp_path, 'train', 1)[0], scene_paths(tmp_path, 'val', 0)[1]]
    for path in lost:
        path.unlink()
    assert write_dataset(tmp_path, 4, 2, **SMALL) == 2
    assert contents(tmp_path) == whole
    redrawn = {path for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert redrawn == {*scene_paths(tmp_path, 'train', 1), *scene_paths(tmp_path, 'val', 0)}
    assert write_dataset(tmp_path, 5, 2, **SMALL) == 1


def test_an_interrupted_call_leaves_whole_files_and_is_taken_up_again(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / 'a', 6, 0, **SMALL, on_scene=interrupt)
    assert len(list(tmp_path.rglob('*.png'))) == 6
    assert write_dataset(tmp_path / 'a', 6, 0, **SMALL) == 3
    write_dataset(tmp_path / 'b', 6, 0, **SMALL)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_a_write_that_fails_leaves_neither_the_file_nor_a_temporary_one(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(Path, 'replace', fail)
    image, labels = scene_paths(tmp_path, 'train', 0)
    image.parent.mkdir(parents=True)
    labels.parent.mkdir(parents=True)
    with pytest.raises(OSError, match='disk full'):
        writer.write_scene(tmp_path, 0, 48, 96, ('train', 0))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize('change', [{'seed': 1}, {'height': 64}, {'width': 128}, {'num_train': 1}])
def test_a_folder_with_other_scenes_is_refused_untouched(tmp_path, change):
    asked = {'num_train': 2, 'num_val': 0, 'seed': 0, **SMALL}
    write_dataset(tmp_path, **asked)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='delete the folder or choose another'):
        write_dataset(tmp_path, **{**asked, **change})
    assert contents(tmp_path) == before


def test_a_folder_of_another_generator_version_is_refused(tmp_path, monkeypatch):
    write_dataset(tmp_path, 1, 0, **SMALL)
    monkeypatch.setattr(writer, 'GENERATOR_VERSION', GENERATOR_VERSION + 1)
    with pytest.raises(FileExistsError, match="'version'"):
        write_dataset(tmp_path, 1, 0, **SMALL)


def test_a_folder_of_foreign_pictures_is_refused(tmp_path):
    write_dataset(tmp_path, 1, 0, **SMALL)
    (tmp_path / MANIFEST).write_text('{')
    with pytest.raises(FileExistsError, match='cannot be read'):
        write_dataset(tmp_path, 1, 0, **SMALL)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(FileExistsError, match=f'no {MANIFEST}'):
        write_dataset(tmp_path, 1, 0, **SMALL)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'height': 31}, 'height must be from 32 to 8192 pixels, not 31'),
        ({'width': 8193}, 'width must be from 32 to 8192 pixels, not 8193'),
        ({'num_val': -1}, 'num_val must be at least 0, not -1'),
        ({'seed': -1}, 'seed must be at least 0, not -1'),
        ({'workers': 0}, 'workers must be at least 1, not 0'),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        write_dataset(tmp_path / 'new', **{**SMALL, **change})
    assert not (tmp_path / 'new').exists()


def test_labels_have_the_colours_of_cityscapes_and_the_sheet_shows_both():
    labels = np.array([[0, 10, 255], [13, 18, 8]], np.uint8)
    colours = [[PALETTE[0], PALETTE[10], (0, 0, 0)], [PALETTE[13], PALETTE[18], PALETTE[8]]]
    np.testing.assert_array_equal(colour_labels(labels), colours)
    image = np.full((2, 3, 3), 9, np.uint8)
    sheet = contact_sheet([(image, labels)] * 3, columns=2)
    assert sheet.shape == (4, 12, 3)
    np.testing.assert_array_equal(sheet[2:, :3], image)
    np.testing.assert_array_equal(sheet[:2, 9:], colours)
    assert not sheet[2:, 6:].any()


def test_mmseg_loads_the_folder_as_cityscapes(tmp_path):
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules

    register_all_modules()
    write_dataset(tmp_path, 2, 1, seed=4, **SMALL)
    dataset = CityscapesDataset(
        data_root=str(tmp_path),
        data_prefix={'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'},
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}],
    )
    assert dataset.metainfo['classes'] == CLASSES
    assert dataset.metainfo['palette'] == [list(colour) for colour in PALETTE]
    assert len(dataset) == 2
    for index, sample in enumerate(dataset):
        image, labels = draw_scene(scene_rng(4, 'train', index), **SMALL)
        np.testing.assert_array_equal(sample['img'], image[..., ::-1])  # mmseg keeps BGR
        np.testing.assert_array_equal(sample['gt_seg_map'], labels)


def test_the_tool_writes_a_data_set_and_a_sheet(tmp_path, monkeypatch, capsys):
    sheet, size = tmp_path / 'new' / 'sheet.png', ('--size', 48, 96)
    counts = ('--train', 2, '--val', 1, '--seed', 3, '--workers', 2)
    assert run_tool(monkeypatch, '--out', tmp_path / 'a', *counts, *size, '--sheet', sheet) == 0
    said = capsys.readouterr()
    assert said.out == f'{tmp_path / "a"}: 3 scenes drawn, 0 were there already\n'
    assert said.err.splitlines()[-1].startswith('3/3 scenes, ')
    write_dataset(tmp_path / 'b', 2, 1, 48, 96, seed=3)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    image, labels = draw_scene(scene_rng(3, 'val', 0), 48, 96)
    pixels = cv2.imread(str(sheet))[..., ::-1]
    np.testing.assert_array_equal(pixels[:48, :192], np.hstack((image, colour_labels(labels))))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--out', 'old', '--seed', 4), 'error: old was written with .*: delete the folder or .*'),
        (('--out', 'file/below'), r"error: .*'file/below'"),
        (('--out', 'new', '--workers', 0), 'error: workers must be at least 1, not 0'),
    ],
)
def test_the_tool_exits_with_what_is_wrong(tmp_path, monkeypatch, args, message):
    write_dataset(tmp_path / 'old', 0, 0)
    (tmp_path / 'file').write_text('')
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(message, str(run_tool(monkeypatch, *args)))


def test_the_tool_as_a_process_fails_with_one_line_and_no_traceback(tmp_path):
    output = run(TOOL, '--out', tmp_path / 'a', '--size', 8, 96, expect=1)
    assert output.splitlines()[-1] == 'error: height must be from 32 to 8192 pixels, not 8'
    assert 'Traceback' not in output
