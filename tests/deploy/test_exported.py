"""Exported files as segmentors, and files that are damaged or hostile."""

import io
import pickle
import zipfile

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import Config
from mmseg.structures import SegDataSample
from small_network import ABOUT, images, onnx_file

from bdd_seg.deploy.about import Windows
from bdd_seg.deploy.exported import (
    ExportedFile,
    ExportedSegmentor,
    inference_settings,
    preprocessor,
    segmentor_for,
)
from bdd_seg.errors import ConfigError


def cells(batch, stride):
    return F.avg_pool2d(batch, stride)


def test_logits_come_at_the_size_of_the_images(tmp_path):
    model = ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', ABOUT, stride=4))
    batch = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(model(batch), cells(batch, 4))
    expected = F.interpolate(cells(batch, 4), (16, 24), mode='bilinear', align_corners=False)
    torch.testing.assert_close(model.encode_decode(batch), expected)


def test_other_lengths_than_multiples_are_padded_and_cut(tmp_path):
    about = ABOUT.model_copy(update={'multiple': 4})
    model = ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', about, stride=4))
    batch = torch.randn(1, 3, 13, 24)
    padded = F.pad(batch, (0, 0, 0, 3))
    expected = F.interpolate(cells(padded, 4), (16, 24), mode='bilinear', align_corners=False)[:, :, :13]
    torch.testing.assert_close(model.encode_decode(batch), expected)


def test_a_file_of_one_size_gets_resized_images_one_by_one(tmp_path):
    about = ABOUT.model_copy(update={'size': (8, 12)})
    model = ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', about, stride=4, shape=(1, 3, 8, 12)))
    batch = torch.randn(2, 3, 16, 20)
    small = F.interpolate(batch, (8, 12), mode='bilinear', align_corners=False)
    expected = F.interpolate(cells(small, 4), (16, 20), mode='bilinear', align_corners=False)
    torch.testing.assert_close(model.encode_decode(batch), expected)


def test_it_predicts_as_mmseg_does(tmp_path):
    """Images go through the file's own normalisation, red first, and the padding of the config."""
    file = onnx_file(tmp_path / 'x.onnx', ABOUT)
    model = ExportedSegmentor(file, data_preprocessor={'mean': [0.0], 'test_cfg': {'size_divisor': 16}})
    assert model.data_preprocessor.test_cfg == {'size_divisor': 16}
    (image,) = images(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ABOUT.mean, ABOUT.std))
    expected = ((image.flip(0).float() - mean) / std).argmax(0)
    sample = SegDataSample(metainfo={'ori_shape': (20, 32), 'img_shape': (20, 32)})
    (result,) = model.test_step({'inputs': [image], 'data_samples': [sample]})
    assert result.img_padding_size == (0, 0, 0, 12)
    assert torch.equal(result.pred_sem_seg.data[0], expected)


def test_settings_of_mmseg():
    assert inference_settings(ABOUT) == {'mode': 'whole'}
    windows = ABOUT.model_copy(update={'windows': Windows(crop_size=(8, 8), stride=(4, 4))})
    assert inference_settings(windows) == {'mode': 'slide', 'crop_size': (8, 8), 'stride': (4, 4)}
    assert preprocessor(ABOUT)['mean'] == [100.0, 110.0, 120.0] and preprocessor(ABOUT)['bgr_to_rgb']
    cfg = Config({'model': {'type': 'EncoderDecoder'}, 'data_preprocessor': {'size': (8, 8)}})
    assert segmentor_for('x.onnx', cfg)['data_preprocessor'] == {'size': (8, 8)}


def labels_file(path, about):
    """A file whose labels are the first channel of the pixels."""
    pixels = onnx.helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, ('n', 'h', 'w', 3))
    labels = onnx.helper.make_tensor_value_info('labels', onnx.TensorProto.UINT8, ('n', 'h', 'w'))
    index = onnx.numpy_helper.from_array(torch.tensor(0).numpy(), 'index')
    node = onnx.helper.make_node('Gather', ['image', 'index'], ['labels'], axis=3)
    graph = onnx.helper.make_graph([node], 'labels', [pixels], [labels], [index])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10)
    onnx.helper.set_model_props(model, {'bdd_seg': about.model_dump_json()})
    onnx.save(model, path)
    return path


def test_pixels_in_labels_out(tmp_path):
    about = ABOUT.model_copy(update={'takes': 'pixels', 'gives': 'labels'})
    model = ExportedSegmentor(labels_file(tmp_path / 'x.onnx', about))
    image = torch.randint(0, 3, (3, 6, 8), dtype=torch.uint8)
    data = model.data_preprocessor({'inputs': [image]})
    (result,) = model.predict(data['inputs'])
    assert torch.equal(result.pred_sem_seg.data[0], image[0].long())


def test_labels_of_a_binary_network_pass_its_threshold(tmp_path):
    facts = {'takes': 'pixels', 'gives': 'labels', 'threshold': 0.9}
    about = ABOUT.model_copy(update={**facts, 'classes': ('no', 'yes'), 'palette': ABOUT.palette[:2]})
    model = ExportedSegmentor(labels_file(tmp_path / 'x.onnx', about))
    image = torch.randint(0, 2, (3, 6, 8), dtype=torch.uint8)
    (result,) = model.predict(model.data_preprocessor({'inputs': [image]})['inputs'])
    assert torch.equal(result.pred_sem_seg.data[0], image[0].long())


def test_pixels_are_padded_with_the_mean(tmp_path):
    """Those of the config's padding as those up to a multiple; blue first, as the file takes them."""
    names = {'classes': [str(number) for number in range(200)], 'palette': ABOUT.palette[:1] * 200}
    about = ABOUT.model_copy(update={'takes': 'pixels', 'gives': 'labels', 'multiple': 4, **names})
    padding = {'test_cfg': {'size': (8, 12)}}
    model = ExportedSegmentor(labels_file(tmp_path / 'x.onnx', about), data_preprocessor=padding)
    seen = []
    model.exported.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 3, (3, 8, 12), dtype=torch.uint8)
    data = {'inputs': [image[:, :6, :10]], 'data_samples': [SegDataSample()]}
    batch = model.data_preprocessor(data)['inputs']
    model.encode_decode(batch)
    model.encode_decode(batch[:, :, :6, :10])
    for pixels in seen:
        assert torch.equal(pixels[0, :6, :10], image[:, :6, :10].permute(1, 2, 0))
        assert pixels.shape == (1, 8, 12, 3) and pixels[0, 7, 11].tolist() == [120, 110, 100]


def test_labels_beyond_the_classes(tmp_path):
    about = ABOUT.model_copy(update={'takes': 'pixels', 'gives': 'labels'})
    model = ExportedSegmentor(labels_file(tmp_path / 'x.onnx', about))
    with pytest.raises(ConfigError, match='the label 9, and tells 3 classes'):
        model(model.data_preprocessor({'inputs': [torch.full((3, 6, 8), 9, dtype=torch.uint8)]})['inputs'])


def program(path, about=ABOUT, extra=()):
    """A .pt2 of one convolution, and further files in it."""
    module = torch.nn.Conv2d(3, 3, 1).eval()
    exported = torch.export.export(module, (torch.zeros(1, 3, 8, 12),))
    exported.example_inputs = None
    torch.export.save(exported, path, extra_files={'bdd_seg.json': about.model_dump_json()})
    with zipfile.ZipFile(path, 'a') as archive:
        for name, content in extra:
            archive.writestr(f'{path.stem}/{name}', content)
    return module


def test_a_program(tmp_path):
    about = ABOUT.model_copy(update={'size': (8, 12)})
    module = program(tmp_path / 'x.pt2', about)
    model = ExportedSegmentor(tmp_path / 'x.pt2').eval()
    assert model.about == about
    batch = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), module(batch))
    assert 'for one image of 8×12' in model.exported.describe()


class Hostile:
    def __reduce__(self):
        return print, ('this code has run',)


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'name, content',
    [
        ('data/constants/custom_obj_0', pickle.dumps(Hostile())),
        ('data/constants/opaque_obj_0', pickle.dumps(Hostile())),
        ('data/weights/model.pt', legacy(Hostile())),
        ('data/sample_inputs/other.pt', legacy(Hostile())),
        (
            'data/weights/other_weights_config.json',
            '{"config": {"w": {"path_name": "w", "use_pickle": true}}}',
        ),
        ('data/aotinductor/model/model.so', b''),
    ],
)
def test_a_program_with_pickles_is_refused(tmp_path, capfd, name, content):
    with zipfile.ZipFile(tmp_path / 'x.pt2', 'w') as archive:
        archive.writestr(f'x/{name}', content)
    with pytest.raises(ConfigError, match='pickled objects|cannot be loaded'):
        ExportedFile(tmp_path / 'x.pt2')
    assert 'this code has run' not in capfd.readouterr().out


def test_files_that_are_none(tmp_path):
    for name, content, message in [
        ('a.onnx', b'text', 'cannot be loaded'),
        ('a.pt2', b'text', 'cannot be loaded'),
        ('b.pt2', b'', 'cannot be loaded'),
        ('a.txt', b'', 'neither an .onnx nor a .pt2'),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            ExportedFile(tmp_path / name)
    with pytest.raises(ConfigError, match='does not exist'):
        ExportedFile(tmp_path / 'no.onnx')


def test_facts_that_are_absent_damaged_or_of_another_file(tmp_path):
    with pytest.raises(ConfigError, match='OnnxTeacher'):
        ExportedFile(onnx_file(tmp_path / 'x.onnx', None))
    with pytest.raises(ConfigError, match='damaged'):
        ExportedFile(onnx_file(tmp_path / 'x.onnx', '{'))
    labels = ABOUT.model_copy(update={'gives': 'labels'})
    more = {'classes': ('a', 'b', 'c', 'd'), 'palette': ABOUT.palette[:1] * 4}
    bands = ABOUT.model_copy(update={'bands': 4, 'mean': (0.0,), 'std': (1.0,)})
    for about in (labels, ABOUT.model_copy(update=more), bands):
        with pytest.raises(ConfigError, match='its facts, . classes.* do not fit its inputs and outputs'):
            ExportedFile(onnx_file(tmp_path / 'x.onnx', about))
    program(tmp_path / 'x.pt2', ABOUT.model_copy(update={**more, 'size': (8, 12)}))
    with pytest.raises(ConfigError, match='gives 3 logits, and tells 4 classes'):
        ExportedSegmentor(tmp_path / 'x.pt2')(torch.zeros(1, 3, 8, 12))


def test_devices(tmp_path):
    program(tmp_path / 'x.pt2', ABOUT.model_copy(update={'size': (8, 12)}))
    model = ExportedSegmentor(tmp_path / 'x.pt2', device='meta')
    assert model(torch.zeros(1, 3, 8, 12, device='meta')).device.type == 'meta'
    assert (
        ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', ABOUT), device='cpu').exported.device.type == 'cpu'
    )


def test_too_little_memory_is_no_fault_of_the_file(tmp_path):
    def fail(*_):
        raise torch.OutOfMemoryError

    model = ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', ABOUT))
    model.exported.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.zeros(1, 3, 8, 8))


def test_images_that_a_file_does_not_take(tmp_path):
    model = ExportedSegmentor(onnx_file(tmp_path / 'x.onnx', ABOUT))
    with pytest.raises(ConfigError, match=r'does not run on images \(1, 4, 8, 8\)'):
        model(torch.zeros(1, 4, 8, 8))
