"""Networks are exported, and a file is kept if it gives what they do."""

import json
import sys

import onnx
import pytest
import torch
from small_network import ABOUT, build, images

from bdd_seg.deploy import export, verify
from bdd_seg.deploy.about import KEY, Windows
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.images import at_size
from bdd_seg.deploy.layers import first_difference
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.verify import Check, compare, export_verified, other_size
from bdd_seg.errors import ConfigError
from bdd_seg.teachers import OnnxTeacher

SIZE = (20, 32)


@pytest.fixture(scope='module')
def dynamic(tmp_path_factory):
    """The small network as an ONNX file for any size, what is said of it, and the lines of its progress."""
    told = []
    out = tmp_path_factory.mktemp('dynamic') / 'small.onnx'
    return export_verified(build(), ABOUT, out, images(), SIZE, tell=told.append), told


def test_a_file_for_any_size(dynamic):
    exported, told = dynamic
    assert exported.about.size is None and exported.about.multiple == 1 and exported.fixed_because is None
    assert [check.size for check in exported.checks] == [(20, 32), (15, 41)]
    assert all(check.error < 1e-5 and check.agreement == 1 and check.images == 2 for check in exported.checks)
    assert told == ['exporting for images of any size', 'comparing with torch on 2 images']
    assert [file.name for file in exported.file.parent.iterdir()] == ['small.onnx']
    network, file = DeployedNetwork(build(), ABOUT), ExportedFile(exported.file)
    for shape in ((3, 3, 9, 50), (1, 3, 64, 7)):
        batch = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(file(batch), network(batch), atol=1e-5, rtol=1e-5)


def test_what_the_file_tells(dynamic):
    model = onnx.load(dynamic[0].file)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts['classes']) == ['road', 'sky', 'car']
    assert facts[KEY] == dynamic[0].about.model_dump_json()
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 18)]
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ('image', 'logits')
    axes = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert axes == ['batch', 3, 'height', 'width']
    # onnxruntime would plan its memory by lengths that were 1 for the example.
    within = {name for node in model.graph.node for name in node.output} - {'logits'}
    infos = [info for info in model.graph.value_info if info.name in within]
    assert infos and not any(info.type.tensor_type.HasField('shape') for info in infos)
    assert str(sys.prefix).encode() not in dynamic[0].file.read_bytes()  # no path of this machine


def test_a_teacher_takes_the_file(dynamic):
    teacher = OnnxTeacher(str(dynamic[0].file), mean=ABOUT.mean, std=ABOUT.std)
    network = teacher.load([None])
    assert network.class_names == ('road', 'sky', 'car') and network.num_classes == 3


def test_a_program_falls_back_on_one_size_and_says_why(tmp_path):
    """mmseg's ``Upsample`` by 1.5 computes its size in floating point, which the exporter fixes."""
    out = tmp_path / 'x.pt2'
    exported = export_verified(build(factor=1.5), ABOUT, out, images(), SIZE)
    assert exported.about.size == SIZE
    assert 'images 15×41' in exported.fixed_because or '15, 41' in exported.fixed_because
    assert ExportedFile(out).about == exported.about
    assert [file.name for file in tmp_path.iterdir()] == ['x.pt2']


def test_a_file_that_differs_is_not_kept_and_the_layer_is_named(tmp_path):
    out = tmp_path / 'x.onnx'
    out.write_text('an earlier one')
    with pytest.raises(ConfigError, match='is not written: 2 images 20×32: largest error') as raised:
        export_verified(build(skewed=True), ABOUT, out, images(), SIZE, dynamic=False)
    assert 'the first layer whose output differs is backbone.last: an error of' in str(raised.value)
    assert '(1, 4, 10, 16)' in str(raised.value)
    assert out.read_text() == 'an earlier one' and [file.name for file in tmp_path.iterdir()] == ['x.onnx']


def test_no_layer_differs_where_none_does(tmp_path):
    network = DeployedNetwork(build(), ABOUT.model_copy(update={'size': SIZE}))
    batch = at_size(network, images(1), SIZE)
    told = first_difference(network, batch, SIZE, False, tmp_path, '.pt2')
    assert told == 'no layer alone differs by more than a thousandth: rounding errors add up'


def test_a_network_that_takes_no_size_but_its_own(tmp_path):
    model = build(factor=3.0, exact=True)
    with pytest.raises(ConfigError, match='cannot be for any size: the network takes images of 20×32 only'):
        export_verified(model, ABOUT, tmp_path / 'x.onnx', images(), SIZE, dynamic=True)


def test_a_size_that_the_network_does_not_take(tmp_path):
    with pytest.raises(ConfigError, match='takes lengths that are multiples of 4'):
        export_verified(build(exact=True), ABOUT, tmp_path / 'x.onnx', images(), (20, 30), dynamic=False)


def test_a_network_that_cannot_be_traced(tmp_path):
    model = build()
    model.backbone.last = Untraceable()
    with pytest.raises(ConfigError, match="x.pt2' is not written: torch.export cannot trace it") as raised:
        export_verified(model, ABOUT, tmp_path / 'x.pt2', images(), SIZE, dynamic=False)
    assert '\n' not in str(raised.value) and not [*tmp_path.iterdir()]


class Untraceable(torch.nn.Module):
    def forward(self, features):
        return features if features.sum() > -1e9 else features + 1


class Answers(torch.nn.Module):
    """Stands for a file: the network's own answers, changed."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, batch):
        with torch.no_grad():
            return self.change(
                self.network(batch.to(self.network.mean) if batch.is_floating_point() else batch)
            )


def test_the_comparison_counts_what_it_says():
    network = DeployedNetwork(build(), ABOUT)
    batch = at_size(network, images(), SIZE)
    with torch.no_grad():
        own = network(batch)

    def change(logits):
        changed = logits.clone()
        changed[:, 1, 0, 0] += 0.5
        return changed

    check, second = compare(Answers(network, change), network, images(), [SIZE, (15, 41)])
    assert check.error == pytest.approx(0.5) and second.error == pytest.approx(0.5)
    assert check.largest == pytest.approx(own.abs().max().item())
    labels = [network.labels(logits, SIZE) for logits in (own, change(own))]
    assert check.agreement == pytest.approx((labels[0] == labels[1]).float().mean().item())
    assert not check.passes
    with pytest.raises(ConfigError, match=r'it puts out \(1, 2, 10, 16\), torch \(1, 3, 10, 16\)'):
        compare(Answers(network, lambda logits: logits[:, :2]), network, images(), [SIZE])


@pytest.mark.parametrize(
    'error, largest, agreement, passes',
    [
        (9e-4, 1.0, 1.0, True),
        (1.1e-3, 1.0, 1.0, False),
        (3.9e-3, 33.0, 1.0, True),  # of PIDNet, whose logits are large
        (0.5, 33.0, 1.0, False),
        (1e-6, 1.0, 0.998, False),
        (None, 0.0, 0.9995, True),
        (float('nan'), 1.0, 1.0, False),
        (1e-4, float('nan'), 1.0, True),
    ],
)
def test_limits(error, largest, agreement, passes):
    assert Check(SIZE, 2, error, largest, agreement).passes is passes


def test_no_number_in_any_image_is_an_error():
    network = DeployedNetwork(build(), ABOUT)
    calls = []

    def change(logits):
        calls.append(logits)
        return logits if len(calls) == 1 else logits * float('nan')

    (check,) = compare(Answers(network, change), network, images(), [SIZE])
    assert check.error != check.error and not check.passes


def test_a_single_image_goes_twice_where_any_number_may():
    network = DeployedNetwork(build(), ABOUT)
    shapes = []

    def change(logits):
        shapes.append(tuple(logits.shape))
        return logits

    checks = compare(Answers(network, change), network, images(1), [SIZE, (15, 41)])
    assert [shape[0] for shape in shapes] == [1, 2] and str(checks[0]).startswith('1 image 20×32: ')


@pytest.mark.parametrize('multiple', [1, 8, 32])
def test_the_second_size_is_of_odd_multiples(multiple):
    height, width = other_size((512, 1024), multiple)
    assert height < 512 and width > 1024
    assert height % (2 * multiple) == width % (2 * multiple) == multiple


def test_without_onnxscript(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ConfigError, match=r"pip install 'bdd-seg\[onnx\]'"):
        export.import_exporter()


def test_a_layer_that_cannot_be_computed(tmp_path):
    """A file whose second output fails at this size: the first output is computed and compared."""
    from bdd_seg.deploy import layers

    shape = onnx.numpy_helper.from_array(torch.tensor([1, 5]).numpy(), 'shape')
    nodes = [
        onnx.helper.make_node('Relu', ['image'], ['0']),
        onnx.helper.make_node('Reshape', ['0', 'shape'], ['1']),
        onnx.helper.make_node('Neg', ['1'], ['2']),
    ]
    float_info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        'fixed',
        [float_info('image', onnx.TensorProto.FLOAT, ('n', 'w'))],
        [float_info(name, onnx.TensorProto.FLOAT, None) for name in '012'],
        [shape],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10)
    onnx.save(model, tmp_path / 'x.onnx')
    outputs, failure = layers._onnx_outputs(tmp_path / 'x.onnx', torch.tensor([[1.0, -2, 3, 4]]).numpy())
    assert len(outputs) == 1 and outputs[0].tolist() == [[1, 0, 3, 4]]
    assert 'Reshape' in failure or 'reshape' in failure
    outputs, failure = layers._onnx_outputs(tmp_path / 'x.onnx', torch.tensor([[1.0, -2, 3, 4, 5]]).numpy())
    assert outputs[2].tolist() == [[-1, 0, -3, -4, -5]] and failure == ''


def test_the_image_of_a_default_size():
    trained = verify.Trained(build(exact=True), ABOUT, None, None, {})
    assert verify.default_size(trained, torch.zeros(3, 21, 33)) == (24, 36)
    windows = ABOUT.model_copy(update={'windows': Windows(crop_size=(8, 12), stride=(4, 4))})
    assert verify.default_size(verify.Trained(build(), windows, None, None, {}), torch.zeros(3, 9, 9)) == (
        8,
        12,
    )
