"""Losses between samples: values by hand, slow loops, minima, gradients, precision, extremes, memory; their terms."""

import importlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore.losses import (
    AbsoluteTeacherConfig,
    Batch,
    Context,
    CorrelationCongruenceConfig,
    InstanceGraphConfig,
    LossError,
    ProbabilisticTransferConfig,
    RelativeTeacherConfig,
    RKDAngleConfig,
    RKDDistanceConfig,
    absolute_teacher,
    correlation_congruence,
    instance_graph,
    multi_head_graph,
    probabilistic_transfer,
    relative_teacher,
    rkd_angle,
    rkd_distance,
)

Rows = list[list[float]]


def graphs(rows: Tensor) -> list[Tensor]:
    """Scores of two graphs with two heads, made from embeddings (B, 6)."""
    one, other = rows[:, :3] @ rows[:, 3:].T, rows[:, ::2] @ rows[:, 1::2].T
    return [torch.stack([one, other]) / 8, torch.stack([other.T, one.T]) / 8]


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "probabilistic_transfer": probabilistic_transfer,
    "correlation_congruence": correlation_congruence,
    "absolute_teacher": absolute_teacher,
    "relative_teacher": relative_teacher,
    "instance_graph": lambda s, t: instance_graph([s[:, :2], s[:, 2:]], [t[:, :2], t[:, 2:]]),
    "multi_head_graph": lambda s, t: multi_head_graph(graphs(s), graphs(t)),
}
OF_EQUAL_WIDTHS = {"correlation_congruence", "absolute_teacher"}
EMBEDDING = {
    name: function for name, function in FUNCTIONS.items() if name not in ("instance_graph", "multi_head_graph")
}


def sides(batch: int = 5, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, batch, width, generator=generator, dtype=torch.float64)
    return 2 * ours, theirs


# Worked out by hand.

LINE, EVEN = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])


def test_rkd_distance_by_hand() -> None:
    # Distances 1, 3, 2 over their mean 2: 0.5, 1.5, 1; the teacher's 1, 2, 1 over 4/3: 0.75, 1.5, 0.75.
    # Smooth-L1 of ±0.25 is 0.25²/2 = 0.03125; two pairs, each twice, of 9 entries: 4 · 0.03125 / 9 = 0.0138889.
    assert rkd_distance(LINE, EVEN).item() == pytest.approx(0.0138889, abs=1e-7)


def test_rkd_angle_by_hand() -> None:
    # The student's triangle (0,0), (1,0), (0,1) has the cosines 0, √½, √½; three points on a line 1, -1, 1.
    # Smooth-L1 of 1 is 0.5, of 1 + √½ is 0.5 + √½, of 1 - √½ is (1 - √½)²/2 = 0.75 - √½: together 1.75.
    # Each angle counts twice, of 27: 3.5 / 27 = 0.1296296.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert rkd_angle(triangle, EVEN).item() == pytest.approx(0.1296296, abs=1e-6)


def test_probabilistic_transfer_by_hand() -> None:
    # Orthogonal: cosine 0, rows (1, ½)/1.5 = (2/3, 1/3). Parallel: rows (½, ½).
    # ½ ln(½ · 3/2) + ½ ln(½ · 3) = ½ (-0.2876821 + 0.4054651) = 0.0588915; two rows of 4 entries: 0.0294458.
    value = probabilistic_transfer(torch.eye(2), torch.tensor([[1.0], [5.0]]))
    assert value.item() == pytest.approx(0.0294458, abs=1e-6)


def test_correlation_congruence_by_hand() -> None:
    # δ = (1, 2), (3, 0), (1, 1): 1·3 + 2·0 = 3 and 3·1 + 0·1 = 3; their mean is 3.
    misses = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])
    assert correlation_congruence(misses + 7, torch.full((3, 2), 7.0)).item() == 3


def test_absolute_teacher_by_hand() -> None:
    # ‖(3, 4)‖ = 5 and 0: 2.5
    assert (
        absolute_teacher(torch.tensor([[3.0, 5.0], [1.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 2.0]])).item() == 2.5
    )


def test_relative_teacher_by_hand() -> None:
    # Distances 1, 3, 2 and 1, 2, 1: (0 + 1 + 1) / 3
    assert relative_teacher(LINE, EVEN).item() == pytest.approx(2 / 3)


def test_instance_graph_by_hand() -> None:
    # Squares 1, 9, 4 over their mean 14/3: 3/14, 27/14, 12/14; the teacher's 1, 4, 1 over 2: 7/14, 28/14, 7/14.
    # Differences -4/14, -1/14, 5/14: squares 42/196, each twice, of 9: 1/21. Features differ by 0, 0, 1: 1/3.
    assert instance_graph([LINE], [EVEN]).item() == pytest.approx(1 / 21 + 1 / 3, abs=1e-6)
    # A second layer without a difference: 1/21 of the first, and 1/21 of what changes from it to the second.
    assert instance_graph([LINE, LINE], [EVEN, LINE]).item() == pytest.approx(2 / 21, abs=1e-6)
    # Of the last layer's features nothing, where the widths differ.
    wide = torch.cat([EVEN, torch.zeros(3, 1)], dim=1)
    assert instance_graph([LINE], [wide]).item() == pytest.approx(1 / 21, abs=1e-6)


def test_multi_head_graph_by_hand() -> None:
    # tanh of the teacher's scores is ±½ ln 3, whose softmax is (3/4, 1/4); the student's is (½, ½).
    # ½ ln(½ · 4/3) + ½ ln(½ · 4) = ½ (-0.4054651 + 0.6931472) = 0.1438410 in each row, the mean over two rows.
    score = math.atanh(math.log(3) / 2)
    teacher = torch.tensor([[[score, -score], [-score, score]]])
    assert multi_head_graph([torch.zeros(1, 2, 2)], [teacher]).item() == pytest.approx(0.1438410, abs=1e-6)


# An independent loop over plain numbers.


def norm(row: list[float]) -> float:
    return math.sqrt(sum(value * value for value in row))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def smooth_l1(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


def all_distances(rows: Rows) -> Rows:
    return [[norm(minus(a, b)) for b in rows] for a in rows]


def over_positive_mean(matrix: Rows) -> Rows:
    positive = [value for row in matrix for value in row if value > 0]
    return [[value * len(positive) / sum(positive) for value in row] for row in matrix]


def mean_of(function: Callable[[float, float], float], ours: Rows, theirs: Rows) -> float:
    pairs = [(a, b) for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(function(a, b) for a, b in pairs) / len(pairs)


def angles(rows: Rows) -> Rows:
    found = []
    for a in rows:
        directions = [minus(a, b) for b in rows]
        directions = [[value / norm(d) for value in d] if norm(d) else d for d in directions]
        found += [[dot(one, other) for other in directions] for one in directions]
    return found


def likeness(rows: Rows) -> Rows:
    rows = [[value / (norm(row) + 1e-7) for value in row] for row in rows]
    alike = [[(dot(a, b) + 1) / 2 for b in rows] for a in rows]
    return [[value / sum(row) for value in row] for row in alike]


def edges(rows: Rows) -> Rows:
    return over_positive_mean([[distance**2 for distance in row] for row in all_distances(rows)])


def square(a: float, b: float) -> float:
    return (a - b) ** 2


def softmax_of_tanh(row: list[float]) -> list[float]:
    powers = [math.exp(math.tanh(value)) for value in row]
    return [power / sum(powers) for power in powers]


def slow(name: str, s: Rows, t: Rows) -> float:
    samples = len(s)
    if name == "rkd_distance":
        return mean_of(smooth_l1, over_positive_mean(all_distances(s)), over_positive_mean(all_distances(t)))
    if name == "rkd_angle":
        return mean_of(smooth_l1, angles(s), angles(t))
    if name == "probabilistic_transfer":
        return mean_of(lambda p, q: q * math.log((q + 1e-7) / (p + 1e-7)), likeness(s), likeness(t))
    if name == "correlation_congruence":
        misses = [[abs(value) for value in minus(a, b)] for a, b in zip(s, t, strict=True)]
        return sum(dot(misses[i], misses[i + 1]) for i in range(samples - 1)) / (samples - 1)
    if name == "absolute_teacher":
        return sum(norm(minus(a, b)) for a, b in zip(s, t, strict=True)) / samples
    if name == "relative_teacher":
        pairs = [(i, j) for i in range(samples) for j in range(i + 1, samples)]
        return sum(abs(norm(minus(s[i], s[j])) - norm(minus(t[i], t[j]))) for i, j in pairs) / len(pairs)
    if name == "instance_graph":
        (s1, s2), (t1, t2) = (([row[:2] for row in side], [row[2:] for row in side]) for side in (s, t))
        change_s, change_t = (
            [minus(b, a) for a, b in zip(edges(x), edges(y), strict=True)] for x, y in ((s1, s2), (t1, t2))
        )
        graphs_apart = mean_of(square, edges(s1), edges(t1)) + mean_of(square, edges(s2), edges(t2))
        return graphs_apart + mean_of(square, change_s, change_t) + mean_of(square, s2, t2)
    ours, theirs = (torch.cat(graphs(torch.tensor(side, dtype=torch.float64))).tolist() for side in (s, t))
    total = 0.0
    for graph, other in zip(ours, theirs, strict=True):
        for row, target in zip(graph, other, strict=True):
            p, q = softmax_of_tanh(row), softmax_of_tanh(target)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / samples


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_slow_loop(name: str) -> None:
    student, teacher = sides()
    assert FUNCTIONS[name](student, teacher).item() == pytest.approx(
        slow(name, student.tolist(), teacher.tolist()), rel=1e-10
    )


@pytest.mark.parametrize("name", sorted(EMBEDDING.keys() - OF_EQUAL_WIDTHS))
def test_widths_may_differ(name: str) -> None:
    student, _ = sides(width=3)
    _, teacher = sides(width=7)
    assert FUNCTIONS[name](student, teacher).item() == pytest.approx(
        slow(name, student.tolist(), teacher.tolist()), rel=1e-10
    )


@pytest.mark.parametrize("name", EMBEDDING)
def test_maps_are_flattened_as_they_are(name: str) -> None:
    student, teacher = sides(4, 12)
    maps = student.view(4, 3, 2, 2), teacher.view(4, 3, 2, 2)
    assert FUNCTIONS[name](*maps) == FUNCTIONS[name](student, teacher)


def test_instance_graph_pools_the_last_features_to_one_size() -> None:
    student, teacher = (values.view(4, 3, 2, 2) for values in sides(4, 12))
    large = teacher.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert instance_graph([student], [large]).item() == pytest.approx(instance_graph([student], [teacher]).item())
    assert instance_graph([large], [student]).item() == pytest.approx(instance_graph([teacher], [student]).item())


# Zero at equality; gradients; precision; extremes.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_at_equality_with_zero_gradient(name: str) -> None:
    _, teacher = sides()
    student = teacher.clone().requires_grad_()
    value = FUNCTIONS[name](student, teacher)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    # 1e-7 is the ε of probabilistic_transfer, whose minimum is that near to equality.
    assert student.grad.abs().max() < (1e-7 if name == "probabilistic_transfer" else 1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_numerical_one(name: str) -> None:
    student, teacher = sides(4)
    assert torch.autograd.gradcheck(lambda s: FUNCTIONS[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (values.requires_grad_() for values in sides())
    FUNCTIONS[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_precision(name: str, dtype: torch.dtype) -> None:
    # Embeddings are rounded to the type first: what is measured is the arithmetic, which is float32 for bf16 too.
    student, teacher = (values.to(dtype) for values in sides(32))
    function = FUNCTIONS[name]
    if name == "multi_head_graph":  # its scores are the rounded ones, not what they are made from
        scores = graphs(student), graphs(teacher)
        value = multi_head_graph(*scores)
        expected = multi_head_graph(*([score.double() for score in side] for side in scores))
    else:
        value, expected = function(student, teacher), function(student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


TIED = [[1.0, 2.0, 0.0, 1.0, 1.0, 2.0]] * 3
ZEROS = [[0.0] * 6] * 3
LARGE = [[1e4, -1e4, 1e4, 0.0, 1e4, -1e4], [-1e4, 1e4, 0.0, 1e4, 1e4, 1e4], [1e4, -1e4, 1e4, 0.0, 1e4, -1e4]]
USUAL = sides(3)[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(TIED, USUAL), (USUAL, TIED), (TIED, TIED), (ZEROS, USUAL), (USUAL, ZEROS), (ZEROS, ZEROS), (LARGE, USUAL),
     (USUAL, LARGE), (LARGE, LARGE), (ZEROS, LARGE)],
)  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_extremes_and_ties_stay_finite(
    name: str, student: Rows, teacher: Rows, samples: int, dtype: torch.dtype
) -> None:
    ours = torch.tensor(student[:samples], dtype=dtype, requires_grad=True)
    value = FUNCTIONS[name](ours, torch.tensor(teacher[:samples], dtype=dtype))
    value.backward()
    assert ours.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(ours.grad).all()
    assert ours.grad.abs().max() < 1e6  # a tie has no direction: it must not send the student off


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "correlation_congruence", "relative_teacher"])
def test_one_sample_has_no_relation(name: str) -> None:
    assert FUNCTIONS[name](torch.ones(1, 6), torch.zeros(1, 6)).item() == 0


def test_near_samples_far_from_zero_keep_their_distances() -> None:
    """From a Gram matrix in float32 nothing would be left of them."""
    student, teacher = sides(6)
    for function in (rkd_distance, relative_teacher):
        exact = function(1e4 + student.float().double(), teacher).item()
        assert function((1e4 + student).float(), teacher.float()).item() == pytest.approx(exact, rel=5e-3)


def test_a_cosine_below_minus_one_is_no_logarithm_of_a_negative_number() -> None:
    """Of opposite vectors rounding makes one in about one of fourteen widths."""
    for width in range(3, 203):
        row = 1e4 * torch.rand(1, width, generator=torch.Generator().manual_seed(width))
        opposite = torch.cat([row, -row])
        assert torch.isfinite(probabilistic_transfer(opposite, torch.eye(2)))


@pytest.mark.parametrize("name", EMBEDDING)
def test_shapes_that_broadcasting_would_hide(name: str) -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        FUNCTIONS[name](torch.zeros(4, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no embeddings"):
        FUNCTIONS[name](torch.zeros(4), torch.zeros(4))
    if name in OF_EQUAL_WIDTHS:
        with pytest.raises(ValueError, match="has 1 numbers, the teacher's 3"):
            FUNCTIONS[name](torch.zeros(4, 1), torch.zeros(4, 3))


def test_as_many_layers_of_each_side() -> None:
    with pytest.raises(ValueError, match="1 layers of the student, 2 of the teacher"):
        instance_graph([LINE], [LINE, LINE])
    with pytest.raises(ValueError, match="0 graphs of the student"):
        multi_head_graph([], [])
    with pytest.raises(ValueError, match="differ in shape"):
        multi_head_graph([torch.zeros(1, 2, 2)], [torch.zeros(2, 2, 2)])


# B³ cosines in bounded memory.


class Live(TorchDispatchMode):
    """Counts the numbers in the tensors that are made and not yet gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out._is_view():
            self.now += out.numel()
            self.most = max(self.most, self.now)
            weakref.finalize(out, self.gone, out.numel())
        return out

    def gone(self, numbers: int) -> None:
        self.now -= numbers


def angle_with_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, int]:
    student = student.clone().requires_grad_()
    with Live() as live:
        value = rkd_angle(student, teacher)
        value.backward()
    assert student.grad is not None
    return value.detach(), student.grad, live.most


def test_rkd_angle_in_chunks_is_the_same_in_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = sides(64, 8)
    whole, gradient, most = angle_with_gradient(student, teacher)
    assert most > 2 * 64**3
    monkeypatch.setattr(importlib.import_module("kdcore.losses.rkd_angle"), "NUMBERS", 3 * 64**2)
    value, other, least = angle_with_gradient(student, teacher)  # 22 chunks, the last one smaller
    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-14)
    assert least < most / 8


# Terms.

HIDDEN = {"conv_1": (2, 4, 4), "hidden_1": (6,), "hidden_2": (5,), "logits": (3,)}
WIDE = {"conv_1": (2, 4, 4), "wide": (6,), "last": (5,), "logits": (3,)}
CONFIGS = [
    (RKDDistanceConfig, 25, rkd_distance),
    (RKDAngleConfig, 50, rkd_angle),
    (ProbabilisticTransferConfig, 30_000, probabilistic_transfer),
    (CorrelationCongruenceConfig, 0.02, correlation_congruence),
    (AbsoluteTeacherConfig, 1, absolute_teacher),
    (RelativeTeacherConfig, 1, relative_teacher),
]


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = ({name: torch.randn(4, *shape, generator=generator) for name, shape in shapes.items()}
                    for shapes in (HIDDEN, WIDE))  # fmt: skip
    return Batch(ours, [{}, theirs], None, torch.arange(4), torch.zeros(4, 1))


CONTEXT = Context(HIDDEN, [{"logits": (3,)}, WIDE], classes=3)


@pytest.mark.parametrize(("config", "weight", "function"), CONFIGS, ids=lambda value: getattr(value, "__name__", None))
def test_term_is_its_function_on_the_layers(config: Any, weight: float, function: Any) -> None:
    assert config().weight == weight
    seen = batch()
    for named, pair in [
        ({}, ("hidden_2", "last")),
        ({"student_layer": "hidden_1", "teacher_layer": "wide"}, ("hidden_1", "wide")),
        ({"student_layer": "conv_1"}, ("conv_1", "conv_1")),
        ({"student_layer": "logits", "teacher_layer": "logits"}, ("logits", "logits")),
    ]:
        term = config(teacher=2, **named).build(CONTEXT)
        assert term.layers == [pair]
        ours, theirs = seen.student[pair[0]], seen.teachers[1][pair[1]]
        if config is CorrelationCongruenceConfig:
            ours, theirs = term.of_student(ours.flatten(1)), term.of_teacher(theirs.flatten(1))
        assert term(seen) == function(ours, theirs)


def test_only_maps_are_enough_for_an_embedding() -> None:
    shapes = {"conv_1": (2, 4, 4), "conv_2": (3, 2, 2), "logits": (3,)}
    assert RKDDistanceConfig().build(Context(shapes, [shapes])).layers == [("conv_2", "conv_2")]


def test_absolute_teacher_bridges_widths_with_a_layer_that_trains() -> None:
    config = AbsoluteTeacherConfig(teacher=2, student_layer="hidden_1", teacher_layer="last")
    term, seen = config.build(CONTEXT), batch()
    value = term(seen)
    assert value == absolute_teacher(term.regressor(seen.student["hidden_1"]), seen.teachers[1]["last"])
    value.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())


def test_both_layers_of_correlation_congruence_train() -> None:
    term = CorrelationCongruenceConfig(teacher=2, width=7).build(CONTEXT)
    assert [tuple(parameter.shape) for parameter in term.parameters()] == [(7, 5), (7,), (7, 5), (7,)]
    term(batch()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())


def test_instance_graph_is_its_function_on_the_layers() -> None:
    seen = batch()
    term = InstanceGraphConfig(
        teacher=2, student_layers=["conv_1", "hidden_1"], teacher_layers=["conv_1", "wide"]
    ).build(CONTEXT)
    student, teacher = seen.student, seen.teachers[1]
    expected = instance_graph([student["conv_1"], student["hidden_1"]], [teacher["conv_1"], teacher["wide"]])
    assert term.layers == [("conv_1", "conv_1"), ("hidden_1", "wide")]
    assert term(seen) == expected


@pytest.mark.parametrize("config", [config for config, _, _ in CONFIGS])
def test_what_cannot_be_built(config: Any) -> None:
    cases = [
        (config(student_layer="fc"), CONTEXT, "student_layer", "no layer 'fc'"),
        (config(teacher=2, teacher_layer="fc"), CONTEXT, "teacher_layer", "no layer 'fc'"),
        (config(teacher=3), CONTEXT, "teacher", "there are 2 teachers"),
        (config(), Context({"logits": (3,)}, [WIDE]), "student_layer", "student has no hidden"),
        (config(), Context(HIDDEN), "type", "needs a teacher"),
    ]
    for case, context, field, message in cases:
        with pytest.raises(LossError, match=message) as caught:
            case.build(context)
        assert caught.value.field == field
