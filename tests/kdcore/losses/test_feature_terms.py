"""Terms on hidden outputs: their layers, their regressors and networks, what cannot be built, and training."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kdcore.job import Job
from kdcore.losses import (
    AttentionTransferConfig,
    BaseLossConfig,
    Batch,
    Context,
    FactorTransferConfig,
    FlowOfSolutionConfig,
    HintConfig,
    KnowledgeMatchingConfig,
    LossError,
    NeuronSelectivityConfig,
    SimilarityPreservingConfig,
    Term,
    VariationalInformationConfig,
    attention_transfer,
    factor_transfer,
    flow_of_solution,
    hint,
    knowledge_matching,
    neuron_selectivity,
    similarity_preserving,
    variational_information,
)
from kdcore.losses.factor_transfer import FactorTransfer
from kdcore.losses.regressor import BatchNorm, regressor
from kdcore.losses.variational_information import VariationalInformation
from kdcore.reporter import Interrupted, RecordingReporter

STUDENT = {"conv_1_pre": (4, 8, 8), "conv_1": (4, 4, 4), "conv_2": (6, 2, 2), "hidden_1": (5,), "logits": (3,)}
TEACHER = {"stem": (4, 4, 4), "block_1": (4, 4, 4), "block_2": (6, 2, 2), "pooled": (9,), "logits": (3,)}
WIDE = {"block_1_pre": (7, 4, 4), "block_1": (7, 2, 2), "block_2": (8, 2, 1), "pooled": (9,), "logits": (3,)}
VECTORS = {"hidden_1": (9,), "logits": (3,)}
CONFIGS: list[type[BaseLossConfig]] = [
    HintConfig,
    KnowledgeMatchingConfig,
    AttentionTransferConfig,
    SimilarityPreservingConfig,
    NeuronSelectivityConfig,
    VariationalInformationConfig,
    FlowOfSolutionConfig,
    FactorTransferConfig,
]
OF_ONE_LAYER = (HintConfig, SimilarityPreservingConfig, FactorTransferConfig)
ON_VECTORS = (HintConfig, KnowledgeMatchingConfig, SimilarityPreservingConfig, VariationalInformationConfig)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_fields["type"].default)


def batch(
    size: int = 5, epoch: float = 0.0, teacher: dict[str, tuple[int, ...]] = TEACHER, scale: float = 1.0
) -> Batch:
    generator = torch.Generator().manual_seed(size)
    student, taught = (
        {name: scale * torch.randn(size, *shape, generator=generator).relu() for name, shape in shapes.items()}
        for shapes in (STUDENT, teacher)
    )
    for view in student.values():
        view.requires_grad_()
    return Batch(student, [taught], None, torch.arange(size), torch.zeros(size, 1), epoch)


def build(config: BaseLossConfig, teacher: dict[str, tuple[int, ...]] = TEACHER, epochs: int = 10) -> Term:
    torch.manual_seed(0)
    return config.build(Context(STUDENT, [teacher], classes=3, epochs=epochs))


def test_terms_are_their_functions_on_the_layers_that_fit() -> None:
    seen = batch()
    (s, t), ends = (seen.student, seen.teachers[0]), [("conv_1", "block_1"), ("conv_2", "block_2")]
    first, last = ((s[ours], t[theirs]) for ours, theirs in ends)
    flow = ((first[0], last[0]), (first[1], last[1]))
    for config, layers, expected in [
        (HintConfig(), ends[:1], hint(*first)),
        (KnowledgeMatchingConfig(), ends, knowledge_matching(*flow)),
        (AttentionTransferConfig(p=3), ends, attention_transfer(*first, 3) + attention_transfer(*last, 3)),
        (SimilarityPreservingConfig(), ends[1:], similarity_preserving(*last)),
        (NeuronSelectivityConfig(), ends, neuron_selectivity(*first) + neuron_selectivity(*last)),
        (FlowOfSolutionConfig(), ends, flow_of_solution(*flow)),
    ]:
        term = build(config)
        assert term.layers == layers, config.type
        assert not list(term.parameters()), config.type  # the widths are equal: nothing has to lie between
        assert term(seen).item() == expected.item(), config.type


def test_terms_take_the_layers_that_are_named_of_the_teacher_that_is_named() -> None:
    seen = batch()
    both = Batch(seen.student, [{}, seen.teachers[0]], None, seen.indices, seen.inputs)
    s, t = seen.student, seen.teachers[0]
    one = {"student_layer": "conv_1", "teacher_layer": "stem", "teacher": 2}
    several = {"student_layers": ["conv_1", "conv_1"], "teacher_layers": ["stem", "block_1"], "teacher": 2}
    pairs = [(s["conv_1"], t["stem"]), (s["conv_1"], t["block_1"])]
    flow = ((s["conv_1"], s["conv_1"]), (t["stem"], t["block_1"]))
    for config, expected in [
        (HintConfig(**one), hint(*pairs[0])),
        (KnowledgeMatchingConfig(**several), hint(*pairs[0]) + hint(*pairs[1])),
        (AttentionTransferConfig(**several), attention_transfer(*pairs[0]) + attention_transfer(*pairs[1])),
        (SimilarityPreservingConfig(**one), similarity_preserving(*pairs[0])),
        (NeuronSelectivityConfig(**several), neuron_selectivity(*pairs[0]) + neuron_selectivity(*pairs[1])),
        (FlowOfSolutionConfig(**several), flow_of_solution(*flow)),
    ]:
        term = config.build(Context(STUDENT, [{}, TEACHER]))
        assert term(both).item() == expected.item(), config.type
        assert config.reads(2) == {1}


def test_weights_are_the_usual_ones() -> None:
    weights = {config.model_fields["type"].default: config.model_fields["weight"].default for config in CONFIGS}
    assert weights == {
        "hint": 100, "knowledge_matching": 100, "attention_transfer": 1000, "similarity_preserving": 3000,
        "neuron_selectivity": 50, "variational_information": 1, "flow_of_solution": 1, "factor_transfer": 200,
    }  # fmt: skip


@every_config
def test_a_batch_of_one_and_a_gradient_for_every_parameter(config: type[BaseLossConfig]) -> None:
    """In training mode."""
    teacher = TEACHER if config is FlowOfSolutionConfig else WIDE
    term = build(config(), teacher)
    for size in (1, 5):
        for scale in (0.0, 1.0, 1e4):
            seen = batch(size, 9.0, teacher, scale)
            value = term(seen)
            value.backward()
            assert value.shape == ()
            assert value.isfinite()
            views = [seen.student[ours].grad for ours, _ in term.layers]
            own = [parameter.grad for name, parameter in term.named_parameters() if "paraphraser" not in name]
            assert all(gradient is not None and gradient.isfinite().all() for gradient in (*views, *own))


@every_config
def test_the_plan_builds_it_without_numbers(config: type[BaseLossConfig]) -> None:
    with torch.device("meta"):
        term = build(config(), TEACHER if config is FlowOfSolutionConfig else WIDE)
    assert {parameter.device.type for parameter in term.parameters()} <= {"meta"}
    assert term.layers


@every_config
def test_what_cannot_be_built(config: type[BaseLossConfig]) -> None:
    one = config in OF_ONE_LAYER
    student, teacher = ("student_layer", "teacher_layer") if one else ("student_layers", "teacher_layers")
    named: Any = (lambda layer: layer) if one else (lambda layer: [layer] * 2)
    cases = [
        ({student: named("fc"), teacher: named("stem")}, TEACHER, student, "the student has no layer 'fc'"),
        ({student: named("conv_1"), teacher: named("fc")}, TEACHER, teacher, "the teacher has no layer 'fc'"),
        ({student: named("conv_1"), teacher: named("pooled")}, TEACHER, teacher, "'pooled'"),
        ({}, {"logits": (3,)}, teacher, "the teacher has no hidden"),
        ({"teacher": 2}, TEACHER, "teacher", "there are 1 teachers"),
    ]
    if config not in ON_VECTORS:
        vectors = {student: named("hidden_1"), teacher: named("stem")}
        cases += [
            (vectors, TEACHER, student, "'hidden_1' has the shape (5,) and is no map (C, H, W)"),
            ({}, VECTORS, teacher, "the teacher has no hidden map (C, H, W)"),
        ]
    for options, shapes, field, message in cases:
        with pytest.raises(LossError) as caught:
            build(config(**options), shapes)
        assert message in str(caught.value)
        assert caught.value.field == field


def test_flows_need_two_pairs_of_layers_with_as_many_channels() -> None:
    with pytest.raises(
        LossError, match="'conv_1' has 4 channels, the teacher's 'block_1' has 7; name layers"
    ) as caught:
        build(FlowOfSolutionConfig(), WIDE)
    assert caught.value.field == "student_layers"
    with pytest.raises(LossError, match="2 pairs of layers are needed, 1 fits") as caught:
        build(FlowOfSolutionConfig(student_layers=["conv_1"], teacher_layers=["block_1"]))
    assert caught.value.field == "student_layers"


@pytest.mark.parametrize("config", [AttentionTransferConfig, NeuronSelectivityConfig, FactorTransferConfig])
def test_maps_of_one_place_have_no_pattern_of_places(config: type[BaseLossConfig]) -> None:
    """Each would be 0 for all maps: what is normalised over one place is 1."""
    teacher = {"stem": (4, 4, 4), "pooled": (9, 1, 1), "logits": (3,)}
    name = "student_layer" if config is FactorTransferConfig else "student_layers"
    named: dict[str, Any] = {"student_layer": "conv_2", "teacher_layer": "pooled"}
    if config is not FactorTransferConfig:
        named = {f"{side}s": [layer] for side, layer in named.items()}
    with pytest.raises(LossError, match=r"'conv_2' \(6, 2, 2\) and 'pooled' \(9, 1, 1\): a map of 1x1") as caught:
        build(config(**named), teacher)
    assert caught.value.field == name
    if config is not FactorTransferConfig:
        assert build(config(), teacher).layers == [("conv_1", "stem"), ("conv_2", "pooled")]  # one of two is enough


# Regressors.


@pytest.mark.parametrize(
    ("student", "teacher", "kinds", "kernel", "stride", "result"),
    [
        ((4, 8, 8), (7, 8, 8), ["Conv2d", "BatchNorm", "ReLU"], (1, 1), (1, 1), (7, 8, 8)),
        ((4, 8, 8), (4, 4, 4), ["Conv2d", "BatchNorm", "ReLU"], (3, 3), (2, 2), (4, 4, 4)),
        ((4, 28, 28), (7, 7, 7), ["Conv2d", "BatchNorm", "ReLU"], (3, 3), (4, 4), (7, 7, 7)),
        ((4, 7, 7), (7, 3, 3), ["Conv2d", "BatchNorm", "ReLU"], (3, 3), (2, 2), (7, 4, 4)),  # the rest is pooled
        ((4, 2, 2), (7, 8, 8), ["Conv2d", "BatchNorm", "ReLU"], (1, 1), (1, 1), (7, 2, 2)),  # so is the teacher's
        ((4, 50, 1), (7, 25, 1), ["Conv2d", "BatchNorm", "ReLU"], (3, 3), (2, 1), (7, 25, 1)),  # a sequence
        ((4,), (7,), ["Linear"], None, None, (7,)),
        ((4, 8, 8), (4, 8, 8), ["Identity"], None, None, (4, 8, 8)),
        ((4,), (4,), ["Identity"], None, None, (4,)),
    ],
)
def test_regressors(student: Any, teacher: Any, kinds: list[str], kernel: Any, stride: Any, result: Any) -> None:
    module = regressor({"a": student}, {"b": teacher}, ("a", "b"))
    layers = list(module.children()) or [module]
    assert [type(layer).__name__ for layer in layers] == kinds
    if kernel is not None:
        assert (layers[0].kernel_size, layers[0].stride) == (kernel, stride)
    assert module(torch.randn(3, *student)).shape[1:] == result


def test_a_relu_ends_the_regressor_unless_the_teacher_s_map_is_of_any_sign() -> None:
    shapes = ({"a": (4, 2, 2)}, {"b": (7, 2, 2), "b_pre": (7, 2, 2)})
    for layer, relu, ends in [("b", None, True), ("b_pre", None, False), ("b", False, False), ("b_pre", True, True)]:
        module = regressor(*shapes, ("a", layer), relu)
        assert (module(torch.randn(64, 4, 2, 2)).min().item() >= 0) == ends
    for config in (HintConfig(relu=False), KnowledgeMatchingConfig(relu=False)):
        assert "ReLU" not in repr(build(config, WIDE))
    for config in (HintConfig(), KnowledgeMatchingConfig()):
        assert "ReLU" in repr(build(config, WIDE))


def test_hints_go_through_their_regressors() -> None:
    seen = batch(teacher=WIDE)
    (ours, theirs), *_ = pairs = [("conv_1", "block_1"), ("conv_2", "block_2")]
    term = build(HintConfig(), WIDE)
    assert term(seen).item() == hint(term.regressor(seen.student[ours]), seen.teachers[0][theirs]).item()
    several = build(KnowledgeMatchingConfig(), WIDE)
    bridged = [bridge(seen.student[ours]) for bridge, (ours, _) in zip(several.regressors, pairs, strict=True)]
    expected = knowledge_matching(bridged, [seen.teachers[0][theirs] for _, theirs in pairs])
    assert several(seen).item() == expected.item()


def test_one_value_per_channel_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNorm(3)
    norm(torch.randn(64, 3, 2, 2) * 5 + 2)
    value, before = torch.randn(1, 3, 1, 1), norm.running_mean.clone()
    found = norm.train()(value)
    assert torch.equal(found, norm.eval()(value))
    assert torch.equal(norm.running_mean, before)
    assert norm.train()(torch.cat([value, -value])).mean().abs() < 1e-6  # two have a variance
    module = regressor({"a": (4, 2, 2)}, {"b": (7, 1, 1)}, ("a", "b"))
    assert module(torch.randn(1, 4, 2, 2)).shape == (1, 7, 1, 1)


# Networks of their own.


def test_variational_information_predicts_a_mean_and_a_variance() -> None:
    seen = batch(teacher=WIDE)
    term = build(VariationalInformationConfig(initial_variance=2.5), WIDE)
    assert isinstance(term, VariationalInformation)
    pooled = torch.nn.functional.adaptive_avg_pool2d(seen.student["conv_1"], (2, 2))
    first, last = term.gaussians
    one = variational_information(first.mean(pooled), seen.teachers[0]["block_1"], torch.full((7,), 2.5))
    student = torch.nn.functional.adaptive_avg_pool2d(seen.student["conv_2"], (2, 1))
    other = variational_information(last.mean(student), seen.teachers[0]["block_2"], torch.full((8,), 2.5))
    assert term(seen).item() == pytest.approx((one + other).item(), rel=1e-5)
    assert [layer.bias for layer in first.mean if isinstance(layer, torch.nn.Conv2d)] == [None] * 3


@pytest.mark.parametrize("variance", [1e-3, 5.0, 1e6])
def test_variances_begin_where_they_are_told_to(variance: float) -> None:
    term = build(VariationalInformationConfig(initial_variance=variance))
    student = {name: torch.zeros(2, *shape) for name, shape in STUDENT.items()}  # a mean of 0: there is no bias
    teacher = {name: torch.zeros(2, *shape) for name, shape in TEACHER.items()}
    seen = Batch(student, [teacher], None, torch.arange(2), torch.zeros(2, 1))
    expected = torch.tensor(variance).log().item() / 2 * len(term.layers)
    assert term(seen).item() == pytest.approx(expected, rel=1e-4)


def test_vectors_are_maps_of_one_place() -> None:
    term = build(VariationalInformationConfig(), VECTORS)
    assert term.layers == [("hidden_1", "hidden_1")]
    assert term(batch(teacher=VECTORS)).isfinite()


def test_the_paraphraser_learns_first_and_is_then_frozen() -> None:
    term = build(FactorTransferConfig(paraphraser_epochs=3, paraphraser_lr=1e-2), WIDE)
    assert isinstance(term, FactorTransfer)
    rival = term.rival()
    assert {id(parameter) for parameter in rival.module.parameters()} == {
        id(parameter) for name, parameter in term.named_parameters() if name.startswith("paraphraser.")
    }
    errors = []
    for step in range(30):
        seen = batch(epoch=step / 10, teacher=WIDE)
        value = term(seen)
        value.backward()
        assert value.item() == 0
        for learner in (seen.student["conv_2"], *term.translator.parameters()):
            assert learner.grad is not None  # the term has a graph, though nothing to teach yet
            assert not learner.grad.any()
        loss = rival.loss(seen)
        assert loss is not None
        rival.optimizer.zero_grad()
        loss.backward()
        rival.optimizer.step()
        errors.append(loss.item())
        assert term.metrics() == {"reconstruction": loss}
    assert errors[-1] < 0.7 * errors[0]

    seen, before = batch(epoch=3.0, teacher=WIDE), [parameter.clone() for parameter in term.paraphraser.parameters()]
    assert rival.loss(seen) is None
    value = term(seen)
    factors = term.translator(seen.student["conv_2"]), term.paraphraser.encoder(seen.teachers[0]["block_2"])
    assert value.item() == factor_transfer(*factors).item()
    torch.optim.SGD(term.parameters(), lr=1.0).zero_grad()
    value.backward()
    assert all(parameter.grad is None for parameter in term.paraphraser.parameters())
    assert all(parameter.grad is not None for parameter in term.translator.parameters())
    assert all(map(torch.equal, before, term.paraphraser.parameters()))
    assert term.metrics()["reconstruction"].item() == errors[-1]


@pytest.mark.parametrize(("epochs", "learning"), [(240, 30.0), (60, 30.0), (10, 5.0), (1, 0.5)])
def test_the_paraphraser_learns_for_half_of_the_stage_at_most(epochs: int, learning: float) -> None:
    term = build(FactorTransferConfig(), WIDE, epochs)
    assert isinstance(term, FactorTransfer)
    assert term.learning == learning


@pytest.mark.parametrize(("k", "channels"), [(0.5, 4), (0.01, 1), (2.0, 16)])
def test_a_factor_has_a_share_of_the_teacher_s_channels(k: float, channels: int) -> None:
    term = build(FactorTransferConfig(k=k), WIDE)
    assert isinstance(term, FactorTransfer)
    seen = batch(teacher=WIDE)
    assert term.translator(seen.student["conv_2"]).shape == (5, channels, 2, 2)
    assert term.paraphraser.encoder(seen.teachers[0]["block_2"]).shape == (5, channels, 2, 1)
    assert term.paraphraser(seen.teachers[0]["block_2"]).shape == seen.teachers[0]["block_2"].shape


# In training.


def job(tiny: dict[str, Any]) -> dict[str, Any]:
    """Every one of them at once; the last batch of an epoch is one sample."""
    tiny["data"]["train_samples"] = 145
    tiny["teachers"][0]["model"] = {"type": "cnn", "channels": [4, 6, 8], "hidden": []}
    tiny["student"]["model"] = {"type": "cnn", "channels": [4, 5], "hidden": []}
    flow = {"student_layers": ["conv_1_pre", "conv_1"], "teacher_layers": ["conv_1_pre", "conv_1"]}
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}] + [
        {"type": config.model_fields["type"].default, "weight": 0.1} | (flow if config is FlowOfSolutionConfig else {})
        for config in CONFIGS
    ]
    tiny["stages"][0]["epochs"] = 3
    tiny["baseline"] = False
    return tiny


def test_a_job_with_all_of_them_trains_and_resumes_to_the_same_bytes(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    prepare = Job.prepare

    def watch(self: Job, stage: Any) -> Any:
        made.append(prepare(self, stage))
        return made[-1]

    monkeypatch.setattr(Job, "prepare", watch)
    wanted, whole = light(job(tiny))
    training = made[-1]
    assert list(training.rivals) == [8]  # the paraphraser's, after cross-entropy and seven others
    trained = {id(parameter) for parameter in training.parameters()}
    paraphraser = {id(parameter) for parameter in training.rivals[8].module.parameters()}
    assert not trained & paraphraser
    assert {id(parameter) for parameter in training.terms.parameters()} <= trained | paraphraser

    values = {step: point for stage, step, point in whole.points if stage == "distill-1" and "train/loss" in point}
    learning = [point["train/factor_transfer"] == 0 for _, point in sorted(values.items())]
    assert learning == sorted(learning, reverse=True)
    assert set(learning) == {True, False}
    errors = [point["train/9/reconstruction"] for _, point in sorted(values.items())]
    assert errors[0] > errors[-1] > 0

    for polls in (8, 13, 17):  # the teacher trains for 8; while the paraphraser learns, and after
        reporter = RecordingReporter("pause", request_at=polls)
        with pytest.raises(Interrupted):
            light(tiny, reporter)
        found, rest = light(tiny, resume=reporter.checkpoints[-1].path)
        assert found["digests"] == wanted["digests"]
        both = {(stage, step): point for stage, step, point in (*reporter.points, *rest.points)}
        assert both == {(stage, step): point for stage, step, point in whole.points}


def test_hints_teach(light: Any, tiny: dict[str, Any]) -> None:
    """A student that learns from a hidden layer alone comes nearer to it, and its regressor is not exported."""
    tiny["stages"][0] |= {"losses": [{"type": "hint", "weight": 1.0}], "epochs": 8, "augment": {}}
    tiny["baseline"] = False
    left, reporter = light(tiny)
    values = [point["train/hint"] for stage, _, point in reporter.points if "train/hint" in point]
    assert values[-1] < 0.7 * values[0]
    assert not [name for name in left["models"]["student"] if "regressor" in name]


def test_a_teacher_view_is_left_as_it_is() -> None:
    """No term may write into what others read."""
    for config in CONFIGS:
        seen = batch(epoch=9.0)
        copies: list[Tensor] = [view.clone() for view in seen.teachers[0].values()]
        build(config())(seen).backward()
        assert all(map(torch.equal, copies, seen.teachers[0].values()))
