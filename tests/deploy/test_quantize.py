"""ONNX files are quantised, and the layers that lose too much stay in float."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_network import ABOUT, build, images

from bdd_seg.deploy.about import KEY
from bdd_seg.deploy.export import export_onnx
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.images import as_inputs
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.quantizable import QuantizableGraph
from bdd_seg.deploy.quantize import divergence, fewest, quantize, ranked, run
from bdd_seg.errors import ConfigError

SIZE = (20, 32)
SENSITIVE = 'decode_head.convs.0.conv'
CPU = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
SATURATES = bool(CPU.get('avx2')) and not any(  # sums of two products of 8 bits, but not of 7
    CPU.get(unit) for unit in ('avx512_vnni', 'avx_vnni', 'amx_int8')
)


def fragile() -> torch.nn.Module:
    """A network one of whose layers has huge weights for a channel that is always 0.

    In 8 bits, whose step is a part of the largest weight, nothing is left of its other weights.
    """
    model = build()
    with torch.no_grad():
        for name, bias in (('down', -1.0), ('lower', 0.0)):
            layer = model.get_submodule(f'backbone.{name}')
            layer.weight[3] = 0
            layer.bias[3] = bias
        model.get_submodule(SENSITIVE).weight[:, 3] = 1000
    return model


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Two networks, each with its float file for images of any size."""
    folder = tmp_path_factory.mktemp('float')
    found = {}
    for name, model in (('plain', build()), ('fragile', fragile())):
        found[name] = DeployedNetwork(model, ABOUT), folder / f'{name}.onnx'
        export_onnx(*found[name], SIZE, dynamic=True)
    return found


@pytest.fixture(scope='module')
def graph(exported):
    network, file = exported['plain']
    return QuantizableGraph(file, as_inputs(network, images(23)), 23)


@pytest.fixture(scope='module')
def quantized(graph):
    return graph.without([])


@pytest.fixture(scope='module')
def in_7_bits(exported):
    network, file = exported['plain']
    return QuantizableGraph(file, as_inputs(network, images(23)), 23, reduce_range=True).without([])


def constants(model) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def agreement(network, file):
    """A score in percent: the pixels whose class is the network's own."""
    found = ExportedFile(file)
    with torch.no_grad():
        pairs = [(found(x), network(x)) for x in map(torch.from_numpy, as_inputs(network, images(6)))]
    return 100 * float(np.mean([(own.argmax(1) == other.argmax(1)).float().mean() for own, other in pairs]))


def test_layers_go_by_their_names(graph):
    assert list(graph.layers.values()) == [
        *('backbone.down', 'backbone.lower', 'Add after backbone.down', SENSITIVE),
        *('Concat after Add after backbone.down', 'decode_head.conv_cat.conv', 'decode_head.conv_seg'),
    ]


def test_weights_are_int8_per_channel_and_activations_uint8(quantized):
    values, makers = constants(quantized), {node.output[0]: node for node in quantized.graph.node}
    convolutions = [node for node in quantized.graph.node if node.op_type == 'Conv']
    assert len(convolutions) == 5
    for node in convolutions:
        activation, weight = (makers[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == 'DequantizeLinear'
        tensor, scale, zero = (values[name] for name in weight.input)
        assert tensor.dtype == np.int8 and scale.shape == (len(tensor),) and not zero.any()
        assert makers[activation.input[0]].op_type == 'QuantizeLinear'
        assert values[activation.input[2]].dtype == np.uint8


def test_a_weight_is_rounded_to_127_steps_of_its_channel(quantized, exported):
    weight = exported['plain'][0].model.backbone.lower.weight.detach().numpy()
    steps = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    expected = np.round(weight / steps) * steps
    values = constants(quantized)
    (node,) = [node for node in quantized.graph.node if 'lower.weight' in node.input[0]]
    found = values[node.input[0]] * values[node.input[1]][:, None, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_reduced_range_has_64_steps(in_7_bits, exported):
    weight = exported['plain'][0].model.backbone.lower.weight.detach().numpy()
    values = constants(in_7_bits)
    (node,) = [node for node in in_7_bits.graph.node if 'lower.weight' in node.input[0]]
    found = values[node.input[0]]
    assert found.dtype == np.int8 and np.abs(found).max((1, 2, 3)).tolist() == [64] * len(weight)
    steps = values[node.input[1]][:, None, None, None]
    np.testing.assert_allclose(found * steps, weight, atol=float(steps.max()) * 0.51)


def test_ranges_are_those_of_all_images(graph, quantized, exported):
    inputs = np.concatenate(list(as_inputs(exported['plain'][0], images(23))))
    values = constants(quantized)
    (node,) = [node for node in quantized.graph.node if node.input[0] == 'image' and 'Quant' in node.op_type]
    assert values[node.input[1]] == pytest.approx((inputs.max() - inputs.min()) / 255, rel=1e-5)


def test_facts_and_free_sizes_stay(quantized, exported):
    source = onnx.load(exported['plain'][1])
    onnx.checker.check_model(quantized, full_check=True)
    assert list(quantized.opset_import) == list(source.opset_import)
    assert quantized.graph.input[0].type == source.graph.input[0].type
    facts = {entry.key: entry.value for entry in quantized.metadata_props}
    assert facts == {entry.key: entry.value for entry in source.metadata_props}
    assert facts[KEY] == ABOUT.model_dump_json()


@pytest.mark.parametrize(
    'bits',
    [
        pytest.param('quantized', marks=pytest.mark.skipif(SATURATES, reason='a processor without VNNI')),
        'in_7_bits',
    ],
)
def test_outputs_are_near(bits, exported, request):
    network, file = exported['plain']
    inputs = [*as_inputs(network, images(3)), *as_inputs(network, images(2, (28, 24)))]
    outputs = run(request.getfixturevalue(bits).SerializeToString(), inputs)
    for own, other in zip(run(file, inputs), outputs, strict=True):
        error = np.abs(own - other).max() / np.abs(own).max()
        assert own.shape == other.shape and 0 < error < 0.05


def test_the_layer_that_8_bits_ruin_comes_first(exported):
    network, file = exported['fragile']
    inputs = list(as_inputs(network, images(3)))
    graph = QuantizableGraph(file, inputs, 3)
    order = ranked(graph, inputs, run(file, inputs))
    assert graph.layers[order[0]] == SENSITIVE and sorted(order) == sorted(graph.layers)


def test_sensitive_layers_stay_in_float(exported, tmp_path):
    network, file = exported['fragile']
    told = []
    result = quantize(
        *(file, tmp_path / 'x.onnx', network, images(6)),
        *(lambda tried, _: agreement(network, tried), 2.0, told.append, SATURATES),
    )
    assert result.in_float == (SENSITIVE,) and result.layers == 7
    assert result.float_miou == 100 and result.tried[0] < 70 and result.tried[1] == result.miou >= 98
    assert list(tmp_path.iterdir()) == [result.file] and agreement(network, result.file) == result.miou
    assert result.agreement == pytest.approx(result.miou / 100, abs=0.02)
    assert 'finding the layers that 8 bits change most' in told
    assert str(result).endswith(f'6 of 7 layers in 8 bits; in float stayed {SENSITIVE}')
    model = onnx.load(result.file)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inputs = [node.input[1] for node in model.graph.node if node.op_type == 'Conv']
    assert [types[name] for name in inputs if name in types] == [onnx.TensorProto.FLOAT]


def test_a_layer_in_float_is_computed_in_float(exported, tmp_path):
    """onnxruntime would quantise it between two layers of 8 bits."""
    network, file = exported['fragile']
    inputs = list(as_inputs(network, images(3)))
    graph = QuantizableGraph(file, inputs, 3, reduce_range=SATURATES)
    (node,) = [node for node, layer in graph.layers.items() if layer == SENSITIVE]
    model = graph.without([node])
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ['CPUExecutionProvider'])
    kinds = [node.op_type for node in onnx.load(tmp_path / 'optimised.onnx').graph.node]
    assert kinds.count('QLinearConv') == 4 and kinds.count('Conv') + kinds.count('FusedConv') == 1
    for image, expected in zip(inputs, run(file, inputs), strict=True):
        (found,) = session.run(None, {'image': image})
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_all_layers_in_8_bits_if_little_is_lost(exported, tmp_path):
    network, file = exported['plain']
    seen = []
    result = quantize(
        *(file, tmp_path / 'x.onnx', network, images(4), lambda *tried: seen.append(tried) or 71.25, 0.0)
    )
    assert result.in_float == () and result.tried == {0: 71.25}
    assert [name for _, name in seen] == ['the float file', '8 bits']


def test_no_file_where_too_much_is_lost(exported, tmp_path):
    network, file = exported['plain']
    scores = {'the float file': 60.0, '8 bits': 50.0, '8 bits, 2 of 7 layers in float': 55.5}
    (tmp_path / 'x.onnx').touch()  # of another export
    with pytest.raises(ConfigError) as caught:
        quantize(
            *(file, tmp_path / 'x.onnx', network, images(4)),
            *(lambda _, name: scores.get(name, 55.0), 0.5, lambda _: None),
        )
    assert 'at least 4.50 points of mIoU are lost (55.50 instead of 60.00, with 2 of 7' in str(caught.value)
    assert '--max-drop 0.5' in str(caught.value) and not list(tmp_path.iterdir())


def test_pixels_in_labels_out_for_one_size(tmp_path):
    about = ABOUT.model_copy(update={'takes': 'pixels', 'gives': 'labels', 'size': SIZE})
    network, file = DeployedNetwork(build(), about), tmp_path / 'float.onnx'
    export_onnx(network, file, SIZE, dynamic=False)
    result = quantize(file, tmp_path / 'x.onnx', network, images(3, (40, 64)), lambda *_: 1.0, 0.5)
    pixels = torch.stack(images()).permute(0, 2, 3, 1).contiguous()
    with torch.no_grad():
        expected = network(pixels)
    assert (ExportedFile(result.file)(pixels) == expected).float().mean() > 0.95 and result.agreement > 0.95


def test_a_file_without_facts_or_layers(exported, tmp_path):
    network, file = exported['plain']
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'x.onnx')
    with pytest.raises(ConfigError, match='does not tell its classes'):
        QuantizableGraph(tmp_path / 'x.onnx', as_inputs(network, images()), 2)
    node = onnx.helper.make_node('Neg', ['image'], ['logits'])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['n', 3, 'h', 'w'])
        for name in ('image', 'logits')
    ]
    graph = onnx.helper.make_graph([node], 'g', ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid('', 18)
    bare = onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset])
    onnx.helper.set_model_props(bare, {KEY: ABOUT.model_dump_json()})
    onnx.save(bare, tmp_path / 'x.onnx')
    with pytest.raises(ConfigError, match='no convolution'):
        QuantizableGraph(tmp_path / 'x.onnx', as_inputs(network, images()), 2)


@pytest.mark.parametrize('most', [0, 1, 2, 5, 8, 26])
@pytest.mark.parametrize('least', [0, 1, 2, 3, 7, 8, 20, 27])
def test_fewest_is_the_least_that_passes(least, most):
    tried = []
    found = fewest(lambda number: tried.append(number) or number >= least, most)
    assert found == (least if least <= most else None)
    assert len(tried) == len(set(tried)) <= 2 * max(1, most).bit_length() + 1


def test_divergence_is_the_mean_of_kl():
    own, other = np.random.default_rng(0).normal(size=(2, 1, 4, 2, 3))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (own, other))
    assert divergence(own, other) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-9)
    assert divergence(own, own + 3) == pytest.approx(0, abs=1e-12)
    p, q = (1 / (1 + np.exp(-x[:, :1])) for x in (own, other))  # of one channel
    naive = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert divergence(own[:, :1], other[:, :1]) == pytest.approx(naive, rel=1e-9)
    labels = np.array([[[0, 1], [2, 2]]], np.uint8)
    assert divergence(labels, np.zeros_like(labels)) == 0.75


def test_missing_packages(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ConfigError, match=r'pip install .bdd-seg\[onnx\]'):
        QuantizableGraph(exported['plain'][1], [], 0)
