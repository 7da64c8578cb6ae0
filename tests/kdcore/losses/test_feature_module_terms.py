"""Terms whose modules train with the student: layers, what of a teacher they reuse, memory banks, and training."""

import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from kdcore.job import Job
from kdcore.losses import (
    ActivationBoundaryConfig,
    BaseLossConfig,
    Batch,
    Context,
    ContrastiveConfig,
    LossError,
    OverhaulConfig,
    ReviewConfig,
    SemCKDConfig,
    SimKDConfig,
    SingularValueConfig,
    SRRLConfig,
    Term,
    activation_boundary,
    contrastive,
    hierarchical_context,
    overhaul,
    semckd,
    simkd,
    singular_value,
    srrl,
)
from kdcore.losses.contrastive import Contrastive
from kdcore.losses.overhaul import negative_means
from kdcore.losses.review import Review
from kdcore.losses.semckd import SemCKD
from kdcore.losses.simkd import SimKD
from kdcore.losses.srrl import SRRL
from kdcore.models import CNNConfig, MLPConfig, Network
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec
from kdcore.teacher import freeze

STUDENT = CNNConfig(channels=[4, 5], hidden=[6])
TEACHER = CNNConfig(channels=[7, 5, 9], hidden=[8], batch_norm=True)
CONFIGS: list[type[BaseLossConfig]] = [
    ActivationBoundaryConfig,
    OverhaulConfig,
    ReviewConfig,
    SingularValueConfig,
    ContrastiveConfig,
    SimKDConfig,
    SemCKDConfig,
    SRRLConfig,
]
PREACTIVATION = (ActivationBoundaryConfig, OverhaulConfig)
MAPS = (*PREACTIVATION, ReviewConfig, SingularValueConfig, SemCKDConfig)
SHAPE = (1, 8, 8)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_fields["type"].default)


def network(config: CNNConfig | MLPConfig, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = config.build(SHAPE, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def context(
    student: CNNConfig | MLPConfig = STUDENT, teacher: CNNConfig | MLPConfig = TEACHER, **facts: Any
) -> Context:
    ours, theirs = network(student), freeze(network(teacher, 1))
    given = {"classes": 3, "samples": 40, "teacher_networks": [theirs]} | facts
    shapes = [{name: tuple(view.shape[1:]) for name, view in model.views(torch.zeros(2, *SHAPE)).items()}
              for model in (ours, theirs)]  # fmt: skip
    return Context(shapes[0], shapes[1:], **given)


def build(config: BaseLossConfig, here: Context | None = None) -> Term:
    here = here or context()
    torch.manual_seed(2)
    return config.build(here)


def batch(size: int = 5, scale: float = 1.0, student: Any = STUDENT, teacher: Any = TEACHER) -> Batch:
    """What the two networks of `context` make of the same inputs, the student's as leaves."""
    torch.manual_seed(size)
    inputs = scale * torch.randn(size, *SHAPE)
    with torch.no_grad():
        ours, theirs = network(student).views(inputs), freeze(network(teacher, 1)).views(inputs)
    for view in ours.values():
        view.requires_grad_()
    return Batch(ours, [theirs], torch.arange(size) % 3, torch.arange(size) * 3, inputs)


# What they compare.


def test_terms_are_their_functions_through_what_they_train() -> None:
    seen = batch()
    s, t = seen.student, seen.teachers[0]
    before = [("conv_1_pre", "conv_1_pre"), ("conv_2_pre", "conv_2_pre")]
    after = [("conv_1", "conv_1"), ("conv_2", "conv_2")]

    boundary: Any = build(ActivationBoundaryConfig(margin=0.5))
    bridged = [bridge(s[layer]) for bridge, (layer, _) in zip(boundary.connectors, before, strict=True)]
    taught = [t[layer] for _, layer in before]
    assert boundary.layers == before
    assert boundary(seen).item() == activation_boundary(bridged, taught, 0.5).item()

    here = context()
    whole: Any = build(OverhaulConfig(), here)
    bridged = [bridge(s[layer]) for bridge, (layer, _) in zip(whole.connectors, before, strict=True)]
    norms = [cast(Network, here.teacher_networks[0]).norm_before(layer) for _, layer in before]
    expected = overhaul(bridged, taught, [negative_means(norm) for norm in norms if norm is not None])
    assert whole.layers == before
    assert whole(seen).item() == expected.item()

    vectors: Any = build(SingularValueConfig(k=2))
    kinds = [type(module) for module in vectors.connectors]
    assert kinds == [nn.Sequential, nn.Identity]  # 4 to 7 channels; 5 to 5
    maps = [vectors.connectors[0](s["conv_1"]), s["conv_2"]]
    assert vectors.layers == after
    assert vectors(seen).item() == singular_value(maps, [t["conv_1"], t["conv_2"]], 2).item()


def test_terms_take_the_layers_that_are_named_of_the_teacher_that_is_named() -> None:
    here, seen = context(), batch()
    second = replace(here, teachers=[{}, here.teachers[0]], teacher_networks=[nn.Identity(), *here.teacher_networks])
    both = replace(seen, teachers=[{}, seen.teachers[0]])
    for config in CONFIGS:
        named: dict[str, Any] = {"student_layer": "conv_2"}
        expected = [("conv_2", "hidden_1")]
        if config in MAPS:
            suffix = "_pre" if config in PREACTIVATION else ""
            ours, theirs = [f"conv_1{suffix}", f"conv_2{suffix}"], [f"conv_2{suffix}", f"conv_3{suffix}"]
            named = {"student_layers": ours, "teacher_layers": theirs}
            expected = list(zip(ours, theirs, strict=True))
        if config is SemCKDConfig:
            named["teacher_layers"] = ["conv_3"]
            expected = [("conv_1", "conv_3"), ("conv_2", "conv_3")]
        if config is ContrastiveConfig:
            named, expected = {"student_layer": "conv_2", "teacher_layer": "conv_3"}, [("conv_2", "conv_3")]
        term = build(config(teacher=2, **named), second)
        assert term.layers == expected, config
        assert term(both).isfinite(), config
        assert config(teacher=2).reads(2) == {1}


def test_weights_are_the_usual_ones() -> None:
    weights = {config.model_fields["type"].default: config.model_fields["weight"].default for config in CONFIGS}
    assert weights == {
        "activation_boundary": 1, "overhaul": 1e-3, "review": 5, "singular_value": 1, "contrastive": 0.8,
        "simkd": 1, "semckd": 400, "srrl": 1,
    }  # fmt: skip
    assert [ReviewConfig().weight_at(epoch) for epoch in (0, 10, 20, 90)] == [0, 2.5, 5, 5]


@every_config
def test_a_batch_of_one_and_a_gradient_for_every_parameter(config: type[BaseLossConfig]) -> None:
    """In training mode; the teacher's deepest map has one place."""
    here = context()
    before = {name: value.clone() for name, value in here.teacher_networks[0].state_dict().items()}
    for size, scale in itertools.product((1, 5), (0.0, 1.0, 1e4)):
        term, seen = build(config(), here), batch(size, scale)
        value = term(seen)
        value.backward()
        assert value.shape == ()
        assert value.isfinite()
        views = [seen.student[ours].grad for ours, _ in term.layers]
        own = [parameter.grad for parameter in term.parameters()]
        assert own
        assert all(gradient is not None and gradient.isfinite().all() for gradient in (*views, *own))
    after = here.teacher_networks[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.grad is not None for parameter in here.teacher_networks[0].parameters())


@every_config
def test_what_is_the_teacher_s_is_neither_trained_nor_saved(config: type[BaseLossConfig]) -> None:
    here = context()
    term = build(config(), here)
    theirs = {id(value) for value in (*here.teacher_networks[0].parameters(), *here.teacher_networks[0].buffers())}
    assert not theirs & {id(value) for value in (*term.parameters(), *term.buffers())}
    assert not set(here.teacher_networks[0].modules()) & set(term.modules())
    assert all(parameter.requires_grad for parameter in term.parameters())
    term.train()
    assert not any(module.training for module in here.teacher_networks[0].modules())


@every_config
def test_the_plan_builds_it_without_numbers(config: type[BaseLossConfig]) -> None:
    model = {"type": "cnn", "channels": [4, 5], "hidden": [6], "batch_norm": True}
    losses = [{"type": "cross_entropy"}, {"type": config.model_fields["type"].default}]
    spec = parse_spec(
        {
            "data": {"type": "digits"},
            "teachers": [{"model": model}],
            "student": {"model": model},
            "stages": [{"losses": losses}],
        }
    )
    _, planned = next(stage for stage in make_plan(spec).stages if stage.name == "distill-1").losses
    assert planned.layers
    assert planned.parameters > 0 or config is SingularValueConfig  # which has nothing to bridge here


# What cannot be built.


@every_config
def test_what_cannot_be_built(config: type[BaseLossConfig]) -> None:
    student, named = ("student_layers", ["fc"]) if config in MAPS else ("student_layer", "fc")
    other = {"teacher_layers": ["conv_1"]} if config in MAPS else {}
    cases: list[tuple[dict[str, Any], Context, str, str]] = [
        ({student: named, **other}, context(), student, "the student has no layer 'fc'"),
        ({"teacher": 2}, context(), "teacher", "there are 1 teachers"),
        ({}, replace(context(), teachers=[]), "type", "this loss needs a teacher"),
    ]
    if config in MAPS:
        vectors = context(teacher=MLPConfig(hidden=[8]))
        cases.append(({}, vectors, "teacher_layers", "the teacher has no hidden map (C, H, W)"))
    if config in PREACTIVATION:
        after = {"student_layers": ["conv_1"], "teacher_layers": ["conv_1_pre"]}
        cases.append((after, context(), "student_layers", "is no map (C, H, W) before its activation"))
    for options, here, field, message in cases:
        with pytest.raises(LossError) as caught:
            build(config(**options), here)
        assert message in str(caught.value)
        assert caught.value.field == field


def test_what_a_teacher_must_have() -> None:
    plain = CNNConfig(channels=[7, 5], hidden=[])
    linear = MLPConfig(hidden=[])
    cases: list[tuple[BaseLossConfig, Context, str, str]] = [
        (OverhaulConfig(), context(teacher=plain), "teacher_layers", "'conv_1_pre' is no output of a batch normal"),
        (OverhaulConfig(), context(teacher_networks=[]), "teacher_layers", "is no output of a batch normalisation"),
        (SingularValueConfig(), context(CNNConfig(channels=[4], hidden=[])), "student_layers", "2 pairs of layers"),
        (ContrastiveConfig(), context(samples=1), "negatives", "there is one training sample"),
    ]
    for config in (SRRLConfig, SimKDConfig):
        cases += [
            (config(), context(teacher=linear), "teacher", "made from none of its hidden layers"),
            (config(), context(linear), "student_layer", "the student has no hidden layer"),
            (config(), context(teacher=plain), "student_layer", "reads its map 'conv_2', the student's 'hidden_1' is"),
        ]
    for config, here, field, message in cases:
        with pytest.raises(LossError) as caught:
            build(config, here)
        assert message in str(caught.value)
        assert caught.value.field == field


# Review.


def test_a_level_is_explained_by_itself_and_all_deeper_ones() -> None:
    seen, term = batch(), build(ReviewConfig()).eval()
    assert isinstance(term, Review)
    shallow, deep = (cast(Any, fusion) for fusion in term.fusions)
    explained, left = deep(seen.student["conv_2"], None)
    first, handed = shallow(seen.student["conv_1"], left)
    assert (explained.shape, left.shape) == ((5, 5, 2, 2), (5, 5, 2, 2))
    assert (first.shape, handed.shape) == ((5, 7, 4, 4), (5, 5, 4, 4))
    expected = hierarchical_context(explained, seen.teachers[0]["conv_2"])
    expected = expected + hierarchical_context(first, seen.teachers[0]["conv_1"])
    assert term(seen).item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(first.sum(), seen.student["conv_2"])
    assert gradient.any()  # the teacher's shallow level teaches the student's deep one
    shares = shallow.attention(torch.zeros(1, 10, 4, 4))
    assert shares.shape == (1, 2, 4, 4)
    assert deep.attention is None


# Semantic calibration.


def test_attention_is_over_the_teacher_s_layers_for_each_sample() -> None:
    seen, term = batch(), build(SemCKDConfig(width=16)).eval()
    assert isinstance(term, SemCKD)
    assert (term.ours, term.theirs) == (["conv_1", "conv_2"], ["conv_1", "conv_2", "conv_3"])
    s, t = seen.student, seen.teachers[0]
    attention = term.attention([s[layer] for layer in term.ours], [t[layer] for layer in term.theirs])
    assert attention.shape == (5, 2, 3)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(5, 2))
    assert attention.std(dim=0).min() > 0
    # queries and keys of length 1: no share is more than e² times another
    assert attention.max() / attention.min() < torch.tensor(2.0).exp()
    values, targets = [], []
    for projector, (ours, theirs) in zip(term.projectors, term.layers, strict=True):
        size = min(s[ours].shape[2], t[theirs].shape[2])
        values.append(projector(nn.functional.adaptive_avg_pool2d(s[ours], size)))
        targets.append(nn.functional.adaptive_avg_pool2d(t[theirs], size))
    assert term(seen).item() == pytest.approx(semckd(values, targets, attention).item(), rel=1e-6)


# The teacher's classifier.


@pytest.mark.parametrize(
    ("student", "teacher", "layer", "reads"),
    [
        (STUDENT, TEACHER, "hidden_1", "hidden_1"),
        (CNNConfig(channels=[4, 5], hidden=[]), TEACHER, "conv_2", "hidden_1"),  # a map for a vector: pooled
        (CNNConfig(channels=[4], hidden=[]), CNNConfig(channels=[7, 5], hidden=[]), "conv_1", "conv_2"),
        (MLPConfig(hidden=[6]), MLPConfig(hidden=[9, 8], dropout=0.5), "hidden_1", "hidden_2"),
    ],
)
def test_the_teacher_s_classifier_reads_the_student(student: Any, teacher: Any, layer: str, reads: str) -> None:
    seen, here = batch(student=student, teacher=teacher), context(student, teacher)
    views, module = seen.teachers[0], cast(Network, here.teacher_networks[0])
    name, classifier = module.classifier() or ("", nn.Identity())
    assert name == reads
    torch.testing.assert_close(classifier(views[reads]), views["logits"])

    term = build(SRRLConfig(), here)
    assert isinstance(term, SRRL)
    assert term.layers == [(layer, reads)]
    value = term(seen)
    pooled = seen.student[layer]
    if pooled.dim() == 4:
        pooled = nn.functional.adaptive_avg_pool2d(pooled, views[reads].shape[2:] or (1, 1))
    feature = term.connector(pooled if pooled.dim() == 4 else pooled[:, :, None, None]).reshape(views[reads].shape)
    assert value.item() == pytest.approx(srrl(feature, views[reads], classifier(feature), views["logits"]).item())

    other = build(SimKDConfig(), here)
    assert isinstance(other, SimKD)
    value = other(seen)
    features = seen.student[layer]
    projected = other.projector(features if features.dim() == 4 else features[:, :, None, None])
    projected = nn.functional.adaptive_avg_pool2d(projected, views[reads].shape[2:] or (1, 1))
    projected = projected.reshape(views[reads].shape)
    assert value.item() == pytest.approx(simkd(projected, views[reads]).item(), rel=1e-5)
    classes = classifier(projected).argmax(dim=1)
    assert {name: found.item() for name, found in other.metrics().items()} == pytest.approx({
        "agreement": (classes == views["logits"].argmax(dim=1)).float().mean().item(),
        "accuracy": (classes == seen.labels).float().mean().item(),
    })  # fmt: skip


def test_metrics_of_the_classifier_need_labels_and_a_classification() -> None:
    seen = replace(batch(), labels=None)
    term = build(SimKDConfig())
    assert not term.metrics()
    term(seen)
    assert set(term.metrics()) == {"agreement"}
    partly = build(SimKDConfig(), context(partly_labelled=True))
    partly(batch())  # what has no label would count as wrong
    assert set(partly.metrics()) == {"agreement"}
    regression = build(SimKDConfig(), context(task="regression"))
    regression(seen)
    assert not regression.metrics()


# Memory banks.


def contrasting(samples: int = 40, **options: Any) -> Contrastive:
    term = build(ContrastiveConfig(**options), context(samples=samples))
    assert isinstance(term, Contrastive)
    return term


def test_contrastive_is_its_function_on_the_banks_as_they_were() -> None:
    term, seen = contrasting(width=4, negatives=7, temperature=0.5, momentum=0.25), batch()
    unit = nn.functional.normalize
    ours = unit(term.of_student(seen.student["hidden_1"]), dim=1)
    theirs = unit(term.of_teacher(seen.teachers[0]["hidden_1"]), dim=1)
    banks, state = (term.student_bank.clone(), term.teacher_bank.clone()), torch.get_rng_state()
    assert [bank.shape for bank in banks] == [(40, 4), (40, 4)]
    value = term(seen)
    torch.set_rng_state(state)
    entries = torch.cat([seen.indices[:, None], term.draw(seen.indices)], dim=1)
    products = [torch.einsum("bd,bkd->bk", e, bank[entries]) / 0.5
                for e, bank in ((ours, banks[1]), (theirs, banks[0]))]  # fmt: skip
    scales = [40 * product.exp().mean() for product in products]
    torch.testing.assert_close(term.scales, torch.stack(scales))
    scores = [product - scale.log() for product, scale in zip(products, scales, strict=True)]
    assert value.item() == pytest.approx(contrastive(scores[0], scores[1], 7 / 40).item(), rel=1e-5)
    # each sample's entry moves by three quarters towards its new embedding; no other does
    for bank, before, embedding in ((term.student_bank, banks[0], ours), (term.teacher_bank, banks[1], theirs)):
        moved = unit(0.25 * before[seen.indices] + 0.75 * embedding, dim=1)
        torch.testing.assert_close(bank[seen.indices], moved)
        others = torch.ones(40, dtype=torch.bool).index_fill(0, seen.indices, False)
        assert torch.equal(bank[others], before[others])
        assert not bank.requires_grad
    first = term.scales.clone()
    term(batch(3))
    assert torch.equal(term.scales, first)  # the first batch sets them for good


def test_negatives_are_of_other_classes_as_likely_each() -> None:
    term = contrasting(30, negatives=20)
    places = torch.arange(30)
    classes = torch.tensor([0] * 15 + [1] * 10 + [2] * 5)[torch.randperm(30)]
    term.groups = classes.clone()
    drawn = torch.cat([term.draw(places) for _ in range(1000)], dim=1)  # (30, 20000)
    for place in places:
        counts = torch.bincount(drawn[place], minlength=30)
        allowed = classes != classes[place]
        assert not counts[~allowed].any()
        share = 1 / allowed.sum().item()
        # six standard deviations of a binomial count: 30 rows of up to 25 places exceed them once in a million runs
        bound = 6 * (20_000 * share * (1 - share)) ** 0.5
        assert (counts[allowed] - 20_000 * share).abs().max() < bound


def test_negatives_before_labels_are_seen_and_without_others() -> None:
    term = contrasting(10, negatives=9)
    places = torch.arange(10)
    drawn = torch.cat([term.draw(places) for _ in range(100)], dim=1)
    assert not (drawn == places[:, None]).any()  # any other sample, never itself
    assert all(len(row.unique()) == 9 for row in drawn)
    term.groups = torch.zeros(10, dtype=torch.int64)  # all of one class: there is nothing else to draw
    assert len(term.draw(places).unique()) == 10


def test_labels_are_noted_as_they_are_seen() -> None:
    term, seen = contrasting(), batch()
    unseen = -1 - torch.arange(40)
    assert torch.equal(term.groups, unseen)
    term(replace(seen, labels=None))
    term(replace(seen, labels=torch.rand(5, 3)))  # several classes may be right: none to be told from
    assert torch.equal(term.groups, unseen)
    term(replace(seen, labels=torch.tensor([2, 0, -1, 1, 1])))  # -1: a sample without a label
    expected = unseen.clone()
    expected[torch.tensor([0, 3, 9, 12])] = torch.tensor([2, 0, 1, 1])
    assert torch.equal(term.groups, expected)


def test_negatives_are_never_more_than_there_are_others() -> None:
    assert contrasting(40).count == 39
    assert contrasting(40, negatives=12).count == 12
    assert contrasting(2).draw(torch.tensor([1])).tolist() == [[0]]


# In training.


def test_a_job_with_all_of_them_trains_and_resumes_to_the_same_bytes(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of an epoch is one sample; banks, margins and generator are in the checkpoint."""
    tiny["data"]["train_samples"] = 145
    tiny["teachers"][0]["model"] = {"type": "cnn", "channels": [4, 6, 8], "hidden": [7], "batch_norm": True}
    tiny["student"]["model"] = {"type": "cnn", "channels": [4, 5], "hidden": [6]}
    kinds = [config.model_fields["type"].default for config in CONFIGS]
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}] + [{"type": kind, "weight": 0.1} for kind in kinds]
    tiny["baseline"] = False
    made: list[Any] = []
    prepare = Job.prepare

    def watch(self: Job, stage: Any) -> Any:
        made.append(prepare(self, stage))
        return made[-1]

    monkeypatch.setattr(Job, "prepare", watch)
    wanted, whole = light(tiny)
    training = made[-1]
    trained = {id(parameter) for parameter in training.parameters()}
    assert {id(parameter) for parameter in training.terms.parameters()} <= trained
    assert (training.terms[5].groups >= 0).all()  # every sample was seen with its label
    last = {name: value for _, _, point in whole.points for name, value in point.items()}
    assert 0 <= last["train/7/accuracy"] <= 1
    assert 0 <= last["train/7/agreement"] <= 1

    for polls in (10, 15):  # the teacher trains for 8
        reporter = RecordingReporter("pause", request_at=polls)
        with pytest.raises(Interrupted):
            light(tiny, reporter)
        saved = torch.load(reporter.checkpoints[-1].path, weights_only=True)["running"]["terms"]
        assert {"5.student_bank", "5.teacher_bank", "5.groups", "5.scales", "2.margin_0"} <= set(saved)
        torch.rand(7)  # whatever the next process has done with its generator
        found, rest = light(tiny, resume=reporter.checkpoints[-1].path)
        assert found["digests"] == wanted["digests"]
        both = {(stage, step): point for stage, step, point in (*reporter.points, *rest.points)}
        assert both == {(stage, step): point for stage, step, point in whole.points}


@pytest.mark.parametrize("kind", [config.model_fields["type"].default for config in CONFIGS])
def test_each_teaches(light: Any, tiny: dict[str, Any], kind: str) -> None:
    """Alone, it gets smaller by the student's learning."""
    tiny["data"]["train_samples"] = 300
    tiny["teachers"][0]["model"] = {"type": "cnn", "channels": [4, 8], "hidden": [8], "batch_norm": True}
    tiny["student"]["model"] = {"type": "cnn", "channels": [4, 5], "hidden": [6]}
    loss = {"type": kind, "weight_schedule": None}
    tiny["stages"] = [{"epochs": 6, "batch_size": 30, "optimizer": {"type": "adam", "lr": 0.01}, "losses": [loss]}]
    tiny["baseline"] = False
    _, reporter = light(tiny)
    values = [point[f"train/{kind}"] for _, _, point in reporter.points if f"train/{kind}" in point]
    assert len(values) == 60
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
