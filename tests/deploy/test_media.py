"""Finding images and videos, painting and encoding them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from bdd_seg.deploy.media import (
    Source,
    VideoFile,
    add_legend,
    displayable,
    draw_legend,
    find_sources,
    frames_per_second,
    label_png,
    lay_legend_over,
    paint,
)
from bdd_seg.errors import ConfigError

PALETTE = [(255, 0, 0), (0, 255, 0), (10, 20, 30)]


@pytest.fixture
def tree(tmp_path):
    """Empty files in folders."""
    for name in (
        'a/x.jpg',
        'a/deep/x.PNG',
        'b/x.jpg',
        'b/y.mp4',
        'b/notes.txt',
        'b/.hidden.jpg',
        'c/x.bmp',
        'c/x.jpg',
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / 'empty').mkdir()
    return tmp_path


def names(inputs, tree, out='out'):
    return [source.name for source in find_sources([str(tree / text) for text in inputs], tree / out)]


def test_names_are_paths_in_the_folder_that_was_given(tree):
    assert names(['a'], tree) == ['deep/x', 'x']
    assert names(['b'], tree) == ['x', 'y']
    assert names(['a/x.jpg', 'b/y.mp4'], tree) == ['x', 'y']
    assert names(['b/notes.txt'], tree) == ['notes']  # named by its user, it is tried


def test_a_pattern_counts_from_its_last_plain_folder(tree):
    assert names(['*/x.jpg'], tree) == ['a/x', 'b/x', 'c/x']
    assert names(['a/**/*.PNG'], tree) == ['deep/x']
    assert names(['b/*'], tree) == ['x', 'y']


def test_names_that_would_be_equal_are_told_apart(tree):
    assert names(['a/x.jpg', 'b/x.jpg'], tree) == ['a/x', 'b/x']
    assert names(['c'], tree) == ['x.bmp', 'x.jpg']
    assert names(['a', 'c', 'a/x.jpg'], tree) == ['a/deep/x', 'a/x', 'c/x.bmp', 'c/x.jpg']
    (tree / 'c/x.jpg.png').touch()
    assert names(['c'], tree) == [
        'x.bmp',
        'x.jpg',
        'x.jpg.png',
    ]  # else the last would be x.jpg


def test_earlier_outputs_are_no_inputs(tree):
    for name in ('labels/x.png', 'overlays/x.jpg', 'frames/x.jpg'):
        file = tree / 'out' / name
        file.parent.mkdir(parents=True)
        file.touch()
    assert names(['out'], tree) == ['frames/x']


@pytest.mark.parametrize(
    'name, message',
    [
        ('a/y.jpg', 'does not exist. Did you mean x.jpg?'),
        ('empty', 'holds no image'),
        ('a/*.tif', 'holds no image'),
        ('nowhere/*.jpg', 'holds no image'),
    ],
)
def test_what_is_not_there_is_said(tree, name, message):
    with pytest.raises(ConfigError, match=message):
        names(['a', name], tree)


def test_a_label_map_has_a_palette_and_holds_the_numbers():
    labels = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.open(io.BytesIO(label_png(labels, PALETTE)))
    assert image.mode == 'P'
    assert (np.array(image) == labels).all()
    assert image.convert('RGB').getpixel((2, 0)) == PALETTE[2]
    many = np.array([[0, 300], [70, 5]], np.uint16)
    image = Image.open(io.BytesIO(label_png(many, [(0, 0, 0)] * 301)))
    assert image.mode == 'I;16'
    assert (np.array(image) == many).all()


def test_colours_are_laid_over_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 5, 3), np.uint8)
    labels = rng.integers(0, 3, (4, 5)).astype(np.uint8)
    painted = paint(image, labels, PALETTE, 0.25)
    for y, x in np.ndindex(4, 5):
        colour = np.array(PALETTE[labels[y, x]][::-1])
        assert np.abs(painted[y, x] - (0.25 * colour + 0.75 * image[y, x])).max() <= 0.5
    assert (paint(image, labels, PALETTE, 0) == image).all()


@pytest.mark.parametrize(
    'image, expected',
    [
        (np.full((2, 2), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 2), 7, np.uint8), [7, 7, 7]),
        (np.arange(20, dtype=np.uint8).reshape(2, 2, 5), [0, 1, 2]),
        (np.array([[[0.0, 0.5, 1.0]]], np.float32), [0, 127, 255]),
        (np.array([[[1000, 1500, 2000]]], np.uint16), [0, 127, 255]),
    ],
)
def test_any_image_can_be_painted_on(image, expected):
    shown = displayable(image)
    assert shown.dtype == np.uint8 and shown.shape == (*image.shape[:2], 3)
    assert shown[0, 0].tolist() == expected


def test_a_legend_shows_each_class_and_never_cuts_a_name():
    entries = [('road', (255, 0, 0)), ('a class with a very long name ü <b>', (0, 255, 0))]
    image = np.zeros((40, 60, 3), np.uint8)
    whole = add_legend(image, entries)
    assert whole.shape[1] > 200 and whole.shape[0] > 40 + 2 * 12
    assert (whole[:40, :60] == 0).all() and (whole[:40, 60:] == 255).all()
    legend = draw_legend(tuple(entries), 60)
    for _, (red, green, blue) in entries:
        assert (legend == [blue, green, red]).all(-1).sum() > 50
    assert add_legend(image, entries[:1]).shape[1] >= 60
    two_lines = draw_legend((('road\nand  rail', (255, 0, 0)),), 60)
    assert np.array_equal(two_lines, draw_legend((('road and rail', (255, 0, 0)),), 60))


def test_a_legend_laid_over_a_frame_keeps_its_size():
    frame = np.zeros((48, 96, 3), np.uint8)
    lay_legend_over(frame, [(f'class {i}', (255, 255, 255)) for i in range(30)])
    assert frame.shape == (48, 96, 3)
    assert (frame[: 48 - int(0.4 * 48)] == 0).all() and frame[-5:].max() > 150


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / 'deep/v.mp4'
    rng = np.random.default_rng(0)
    with VideoFile(file, 12.5) as video:
        for _ in range(3):
            video.write(rng.integers(0, 255, (48, 96, 3), np.uint8))
        assert not file.exists()
    assert frames_per_second(file) == (12.5, 3)
    before = file.read_bytes()
    with pytest.raises(RuntimeError), VideoFile(file, 12.5) as video:
        video.write(rng.integers(0, 255, (48, 96, 3), np.uint8))
        raise RuntimeError
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ['v.mp4']


def test_a_file_that_is_no_video(tmp_path):
    file = tmp_path / 'v.mp4'
    file.write_text('no video')
    assert Source(file, 'v').is_video
    with pytest.raises(ConfigError, match='has no frame that can be read'):
        frames_per_second(file)
    assert cv2.VideoCapture(str(file)).read()[0] is False
