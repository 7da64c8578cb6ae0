"""The `sequential` model: a list of layers whose shapes follow from what comes in."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kdcore import export
from kdcore.config import SpecError
from kdcore.data import DataFacts
from kdcore.inputs import Classifier, Normalise, example_inputs
from kdcore.models import SequentialConfig
from kdcore.models.layer_nesting import Layer
from kdcore.plan import make_plan
from kdcore.spec import parse_spec

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
PICTURE = DataFacts((3, 16, 16), ("a", "b", "c"), 9, 1, 2, (0.5,) * 3, (0.2,) * 3)
TEXT = DataFacts((12,), ("a", "b", "c"), 9, 1, 2, (0.0,), (1.0,), vocabulary=50)
SEQUENCE = DataFacts((12, 6), ("a", "b", "c"), 9, 1, 2, (0.1,) * 6, (0.2,) * 6)
VECTOR = DataFacts((7,), ("a", "b", "c"), 9, 1, 2, (0.1,) * 7, (0.2,) * 7)

ON_PICTURES: list[Any] = [
    {"type": "conv2d", "channels": 8, "bias": False},
    {"type": "batch_norm", "name": "normal"},
    {"type": "relu"},
    {"type": "max_pool"},
    {
        "type": "residual",
        "layers": [{"type": "conv2d", "channels": 16, "stride": 2}, {"type": "group_norm", "groups": 4}],
        "shortcut": [{"type": "conv2d", "channels": 16, "kernel": 1, "stride": 2}],
    },
    {"type": "repeat", "times": 2, "layers": [{"type": "residual", "layers": [{"type": "conv2d", "groups": 2}]}]},
    {"type": "conv2d", "depthwise": True},
    {"type": "silu"},
    {"type": "avg_pool"},
    {"type": "hardswish"},
    {"type": "global_pool", "by": "max"},
    {"type": "dropout", "rate": 0.2},
]
ON_SEQUENCES: list[Any] = [
    {"type": "conv1d", "channels": 8, "stride": 2},
    {"type": "batch_norm"},
    {"type": "leaky_relu", "slope": 0.1},
    {"type": "avg_pool"},
    {"type": "lstm", "hidden": 5, "bidirectional": True},
    {"type": "layer_norm"},
    {"type": "linear", "features": 6},
    {"type": "gru", "hidden": 4},
    {"type": "max_pool", "kernel": 3, "stride": 1, "padding": 1},
    {"type": "global_pool"},
    {"type": "sigmoid"},
    {"type": "linear"},
]
ON_TEXTS: list[Any] = [
    {"type": "embedding", "width": 6},
    {"type": "residual", "layers": [{"type": "conv1d"}, {"type": "gelu"}]},
    {"type": "global_pool", "name": "pooled"},
]
ON_VECTORS: list[Any] = [
    {"type": "linear", "features": 5},
    {"type": "batch_norm"},
    {"type": "tanh"},
    {"type": "flatten"},
    {"type": "linear", "features": 3, "bias": False},
]
CASES = [(ON_PICTURES, PICTURE), (ON_SEQUENCES, SEQUENCE), (ON_TEXTS, TEXT), (ON_VECTORS, VECTOR)]
IDS = ["pictures", "sequences", "texts", "vectors"]


def build(layers: list[Any], facts: DataFacts) -> Any:
    config = SequentialConfig.model_validate({"type": "sequential", "layers": layers})
    torch.manual_seed(0)
    return config.build(facts.input_shape, len(facts.classes), facts.vocabulary)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("layers", "facts", "parameters"),
    [
        (
            ON_PICTURES,
            PICTURE,
            (3 * 8 * 9 + 16)  # convolution, batch normalisation
            + (8 * 16 * 9 + 16 + 32) + (8 * 16 + 16)  # residual: its layers, its shortcut
            + 2 * (16 * 8 * 9 + 16)  # twice, in two groups
            + (16 * 9 + 16)  # each channel alone
            + (16 * 3 + 3),
        ),
        (
            ON_SEQUENCES,
            SEQUENCE,
            (6 * 8 * 3 + 8 + 16) + 2 * 4 * 5 * (8 + 5 + 2) + 20 + (10 * 6 + 6) + 3 * 4 * (6 + 4 + 2) + (4 * 3 + 3),
        ),
        (ON_TEXTS, TEXT, 50 * 6 + (6 * 6 * 3 + 6) + (6 * 3 + 3)),
        (ON_VECTORS, VECTOR, (7 * 5 + 5) + 10 + 5 * 3),
    ],
    ids=IDS,
)  # fmt: skip
def test_parameters_by_hand(layers: list[Any], facts: DataFacts, parameters: int) -> None:
    assert count(build(layers, facts)) == parameters


def test_views_have_their_names_and_shapes() -> None:
    views = build(ON_PICTURES, PICTURE).eval().views(torch.zeros(2, 3, 16, 16))
    assert {name: tuple(view.shape[1:]) for name, view in views.items()} == {
        "conv2d_1": (8, 16, 16),
        "normal": (8, 16, 16),
        "relu_3": (8, 16, 16),
        "max_pool_4": (8, 8, 8),
        "residual_5": (16, 4, 4),
        "repeat_6": (16, 4, 4),
        "conv2d_7": (16, 4, 4),
        "silu_8": (16, 4, 4),
        "avg_pool_9": (16, 2, 2),
        "hardswish_10": (16, 2, 2),
        "global_pool_11": (16,),
        "logits": (3,),
    }
    text = build(ON_TEXTS, TEXT).eval().views(torch.ones(2, 12, dtype=torch.int64))
    assert list(text) == ["embedding_1", "residual_2", "pooled", "logits"]
    assert text["residual_2"].shape == (2, 6, 12, 1)


def test_values_by_hand() -> None:
    network = build([{"type": "residual", "layers": [{"type": "linear", "features": 2}, {"type": "relu"}]}], VECTOR2)
    with torch.no_grad():
        network.layers[0].layers[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        network.layers[0].layers[0].bias.zero_()
    assert network.views(torch.tensor([[1.0, 2.0]]))["residual_1"].tolist() == [[4.0, 2.0]]  # 1 + 3; 2 + relu(-1)


VECTOR2 = DataFacts((2,), ("a", "b", "c"), 9, 1, 2, (0.0,), (1.0,))


@pytest.mark.parametrize(("layers", "facts"), CASES, ids=IDS)
def test_what_the_losses_ask_of_a_network(layers: list[Any], facts: DataFacts) -> None:
    network = build(layers, facts).eval()
    views = network.views(example_inputs(facts, 4, torch.Generator().manual_seed(0)))
    assert all(view.ndim in (2, 4) for view in views.values())
    if (found := network.classifier()) is not None:
        torch.testing.assert_close(found[1](views[found[0]]), views["logits"])
    assert (found is None) == (layers is ON_VECTORS)  # a flatten is between
    assert (network.output_bias() is None) == (layers is ON_VECTORS)
    norms = {name: network.norm_before(name) for name in views}
    assert [name for name, norm in norms.items() if norm] == (["normal"] if layers is ON_PICTURES else [])


@pytest.mark.parametrize(("layers", "facts"), CASES, ids=IDS)
def test_exports_agree_and_every_parameter_learns(layers: list[Any], facts: DataFacts, tmp_path: Path) -> None:
    network = build(layers, facts)
    outputs = network.train()(example_inputs(facts, 4, torch.Generator().manual_seed(0)))
    outputs.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    classifier = Classifier(Normalise(facts), network).eval()
    program = export.trace(classifier, facts)
    export.save_onnx(program, tmp_path / "m.onnx")
    export.save_program(program, tmp_path / "m.pt2")
    export.save_weights(tmp_path / "m.safetensors", network.state_dict())
    export.check(classifier, program, tmp_path / "m.onnx", facts)


def test_the_mean_over_a_text_leaves_padding_out() -> None:
    network = build([{"type": "embedding", "width": 4}, {"type": "global_pool"}], TEXT).eval()
    tokens = torch.zeros(1, 12, dtype=torch.int64)
    tokens[0, :2] = torch.tensor([5, 9])
    wanted = network.layers[0](tokens)[0, :2].mean(0)
    torch.testing.assert_close(network.views(tokens)["global_pool_2"][0], wanted)


def test_a_last_linear_layer_is_added_where_there_is_none() -> None:
    for layers in ([{"type": "tanh"}], [{"type": "tanh"}, {"type": "linear"}], [{"type": "linear", "features": 9}]):
        assert build(layers, VECTOR)(torch.zeros(2, 7)).shape == (2, 3)
    assert count(build([{"type": "tanh"}, {"type": "linear"}], VECTOR)) == count(build([{"type": "tanh"}], VECTOR))
    assert count(build([{"type": "linear", "features": 9}], VECTOR)) == (7 * 9 + 9) + (9 * 3 + 3)


def test_the_weights_are_those_of_the_seed() -> None:
    first, again = (build(ON_PICTURES, PICTURE).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


NEST: dict[str, Any] = {"type": "relu"}
for _ in range(4):
    NEST = {"type": "repeat", "times": 1, "layers": [NEST]}


@pytest.mark.parametrize(
    ("layers", "loc", "message"),
    [
        ([{"type": "conv2d", "kernel": 0}], (0, "kernel"), "at least 1"),
        ([{"type": "conv2d"}, {"type": "conv2d", "kernel": 11, "padding": 1}], (1, "kernel"), "larger than the input"),
        ([{"type": "conv2d", "padding": 3}], (0, "padding"), "nothing but padding"),
        ([{"type": "conv2d", "channels": 6}, {"type": "conv2d", "groups": 4}], (1, "groups"), "cannot share"),
        ([{"type": "conv2d", "depthwise": True, "groups": 2}], (0, "groups"), "leave `groups` out"),
        ([{"type": "conv2d", "channels": 4}, {"type": "conv2d", "depthwise": True, "channels": 6}],
         (1, "channels"), "cannot share"),
        ([{"type": "conv1d"}], (0, "type"), "reads a sequence"),
        ([{"type": "flatten"}, {"type": "conv2d"}], (1, "type"), "reads a picture"),
        ([{"type": "linear", "features": 4}], (0, "type"), "reads a vector"),
        ([{"type": "flatten"}, {"type": "linear"}, {"type": "relu"}], (1, "features"), "only the last layer"),
        ([{"type": "layer_norm"}], (0, "type"), "group_norm"),
        ([{"type": "group_norm", "groups": 2}], (0, "groups"), "cannot share"),
        ([{"type": "max_pool", "padding": 2}], (0, "padding"), "half of the kernel"),
        ([{"type": "max_pool", "kernel": 9}], (0, "kernel"), "larger than the input"),
        ([{"type": "lstm"}], (0, "type"), "reads a sequence"),
        ([{"type": "embedding"}], (0, "type"), "of a text"),
        ([{"type": "relu"}], (0, "type"), "global_pool or flatten"),
        ([{"type": "residual", "layers": [{"type": "max_pool"}]}], (0, "shortcut"), "must be alike"),
        ([{"type": "residual", "layers": [{"type": "relu"}, {"type": "conv2d", "groups": 3}]}],
         (0, "layers", 1, "groups"), "cannot share"),
        ([{"type": "residual", "layers": [{"type": "relu", "name": "a"}]}], (0, "layers", 0, "name"), "own list"),
        ([{"type": "residual", "layers": [{"type": "relu"}], "shortcut": [{"type": "relu", "name": "a"}]}],
         (0, "shortcut", 0, "name"), "own list"),
        ([{"type": "relu", "name": "a"}, {"type": "flatten", "name": "a"}], (1, "name"), "another view"),
        ([{"type": "flatten"}, {"type": "linear", "name": "last"}], (1, "name"), "called logits"),
        ([{"type": "repeat", "times": 64, "layers": [{"type": "repeat", "times": 64, "layers": [{"type": "relu"}]}]}],
         (), "4,161 layers"),
        ([{"type": "repeat", "times": 17, "layers": [{"type": "lstm"}]}], (), "17 recurrent"),
        ([NEST], (), "at most 4 deep"),
        ([], (), "at least 1 item"),
        ([{"type": "conv3d"}], (0, "type"), "did you mean 'conv2d'"),
        ([{"channels": 3}], (0, "type"), "name the layer"),
        ([{"type": "repeat", "times": 2, "layers": [{"type": "conv2d", "kernal": 3}]}],
         (0, "layers", 0, "kernal"), "did you mean 'kernel'"),
    ],
)  # fmt: skip
def test_an_error_leads_to_the_layer(layers: list[Any], loc: tuple[Any, ...], message: str) -> None:
    student = {"model": {"type": "sequential", "layers": layers}}
    with pytest.raises(SpecError) as caught:
        make_plan(
            parse_spec({"data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp"}}], "student": student})
        )
    [(found, said)] = caught.value.errors
    assert found == ("student", "model", "layers", *loc)
    assert message in said


def test_a_peer_and_a_text_say_where_as_well() -> None:
    peer = {"type": "sequential", "layers": [{"type": "flatten"}, {"type": "conv2d"}]}
    losses = [{"type": "mutual", "peer": peer}]
    document = {"data": {"type": "digits"}, "teachers": [], "student": {"model": {"type": "mlp"}},
                "stages": [{"losses": losses}]}  # fmt: skip
    with pytest.raises(SpecError, match=r"losses\[0\].peer: layers\[1\].type: conv2d reads a picture"):
        make_plan(parse_spec(document))
    words = {"data": {"type": "sst2"}, "teachers": [], "stages": [{"losses": [{"type": "cross_entropy"}]}],
             "student": {"model": {"type": "sequential", "layers": [{"type": "lstm"}]}}}  # fmt: skip
    with pytest.raises(SpecError, match="begins with an embedding layer"):
        make_plan(parse_spec(words))


def test_the_page_names_every_layer_and_option() -> None:
    section = PAGE.split("\n## Layers of a `sequential` model\n")[1].split("\n## ")[0]
    for layer in get_args(get_args(Layer)[0]):
        [row] = [line for line in section.splitlines() if line.startswith(f"| `{layer.model_fields['type'].default}`")]
        for option in set(layer.model_fields) - {"type", "name"}:
            assert f"`{option}`" in row
