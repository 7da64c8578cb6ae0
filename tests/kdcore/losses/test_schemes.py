"""Schemes that are terms: a discriminator, a peer, inner heads, attention heads; alone and in the loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdcore.data import Places
from kdcore.losses import (
    AdversarialConfig,
    Batch,
    Context,
    InnerHeadsConfig,
    LossError,
    MultiHeadGraphConfig,
    MutualConfig,
    adversarial,
    cross_entropy,
    hint,
    inner_heads,
    kd,
    multi_head_graph,
    mutual,
)
from kdcore.losses.adversarial import discrimination
from kdcore.models import CNNConfig, MLPConfig
from kdcore.opening import open_job
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import rival_step
from kdcore.update import Update

LN3 = 1.0986122886681098
SHAPES = {"conv_1_pre": (4, 4, 4), "conv_1": (4, 4, 4), "conv_2": (6, 2, 2), "hidden_1": (5,), "logits": (3,)}
WIDE = {"conv_1": (6, 4, 4), "conv_2": (6, 2, 2), "hidden_1": (7,), "logits": (3,)}
CONTEXT = Context(SHAPES, [WIDE], input_shape=(1, 4, 4), classes=3, epochs=4)


def batch(samples: int = 8, seed: int = 0, epoch: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def views(shapes: Any) -> dict[str, Tensor]:
        return {name: torch.randn(samples, *shape, generator=generator).relu() for name, shape in shapes.items()}

    student = {name: view.requires_grad_() for name, view in views(SHAPES).items()}
    labels = torch.arange(samples) % 3
    return Batch(student, [views(WIDE)], labels, torch.arange(samples), torch.randn(samples, 1, 4, 4), epoch)


def gradients(value: Tensor, module: nn.Module) -> dict[str, bool]:
    """Which parameters get one from the value."""
    found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
    return {
        name: bool(g is not None and g.any()) for (name, _), g in zip(module.named_parameters(), found, strict=True)
    }


# Values by hand, and their extremes. softmax([ln 3, 0]) = [3/4, 1/4]; sigmoid(ln 3) = 3/4.

ZERO, THREE, LABEL = torch.zeros(1, 2), torch.tensor([[LN3, 0.0]]), torch.tensor([0])


def test_adversarial_by_hand() -> None:
    # -ln ½ = 0.6931472 and -ln(3/4) = 0.2876821; their mean is 0.4904146.
    assert adversarial(torch.tensor([0.0, LN3])).item() == pytest.approx(0.4904146, abs=1e-6)
    # -ln(1 - ½) of the student's and -ln(3/4) of the teacher's: 0.9808293; 2 ln 2 where all is ½.
    assert discrimination(torch.zeros(1), torch.tensor([LN3])).item() == pytest.approx(0.9808293, abs=1e-6)
    assert discrimination(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(1.3862944, abs=1e-6)


def test_adversarial_does_not_saturate() -> None:
    """However sure the discriminator is, a student that it sees through keeps its gradient."""
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = adversarial(scores)
    value.backward()
    assert value.item() == 5e3
    assert scores.grad is not None
    assert scores.grad.tolist() == [-0.5, 0.0]
    assert adversarial(scores.detach().bfloat16()).dtype == torch.float32
    assert torch.isfinite(discrimination(scores, -scores))


def test_mutual_by_hand() -> None:
    # KL([3/4, 1/4] ‖ [½, ½]) = 0.1308120 for the student; -ln(3/4) = 0.2876821 and
    # KL([½, ½] ‖ [3/4, 1/4]) = 0.1438410 for the peer: 0.5623351.
    assert mutual(ZERO, THREE, LABEL).item() == pytest.approx(0.5623351, abs=1e-6)


def test_inner_heads_by_hand() -> None:
    # Heads [0, 0] and [ln 3, 0], last [ln 3, 0]: cross-entropies 0.6931472 and 0.2876821, divergences 0.1308120
    # and 0: ¾ · 0.9808293 + ¼ · 0.1308120 = 0.7683250.
    value = inner_heads([ZERO, THREE], THREE, LABEL, temperature=1.0, soft_share=0.25)
    assert value.item() == pytest.approx(0.7683250, abs=1e-6)
    with pytest.raises(ValueError, match="no head"):
        inner_heads([], THREE, LABEL)


def test_each_side_of_mutual_learns_from_the_other_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    student, peer = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    student.requires_grad_()
    peer.requires_grad_()
    of_student, of_peer = torch.autograd.grad(mutual(student, peer, labels, 2.0), [student, peer])
    (expected,) = torch.autograd.grad(kd(student, peer.detach(), 2.0), student)
    torch.testing.assert_close(of_student, expected)
    (expected,) = torch.autograd.grad(cross_entropy(peer, labels) + kd(peer, student.detach(), 2.0), peer)
    torch.testing.assert_close(of_peer, expected)


def taught_by_a_peer(student: Tensor, peer: Tensor) -> Tensor:
    return mutual(student, peer, student.argmax(1), 2.0)


FUNCTIONS = {
    "adversarial": lambda s, t: adversarial(s.sum(1)),
    "discrimination": lambda s, t: discrimination(s.sum(1), t.sum(1)),
    "mutual": taught_by_a_peer,
    "inner_heads": lambda s, t: inner_heads([s, -s], t, t.argmax(1)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_gradients_precision_and_extremes(function: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = 3 * torch.randn(2, 6, 4, generator=generator)
    wide = ours.double().requires_grad_()
    if function is not taught_by_a_peer:  # its gradient is not that of its value: each side holds the other still
        assert torch.autograd.gradcheck(lambda s: function(s, theirs.double()), wide)
    assert function(ours, theirs).item() == pytest.approx(function(wide, theirs.double()).item(), rel=1e-5)
    rounded = ours.bfloat16(), theirs.bfloat16()
    assert function(*rounded).item() == pytest.approx(function(*(side.double() for side in rounded)).item(), rel=2e-2)
    for extreme in (torch.zeros(1, 4), torch.tensor([[1e4, -1e4, 0.0, 1e4]]), torch.ones(3, 4)):
        leaf = extreme.clone().requires_grad_()
        value = function(leaf, -extreme)
        value.backward()
        assert torch.isfinite(value)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


# The discriminator.


def test_the_student_s_term_is_the_discriminator_s_opinion_of_it() -> None:
    term, seen = AdversarialConfig(hidden=[8]).build(CONTEXT), batch()
    scores = term.discriminator(seen.student["logits"]).squeeze(1)
    assert term(seen).item() == pytest.approx(-F.logsigmoid(scores).mean().item(), rel=1e-5)
    assert [tuple(p.shape) for p in term.discriminator.parameters()] == [(8, 3), (8,), (1, 8), (1,)]


def test_maps_are_judged_by_their_mean_over_positions() -> None:
    term, seen = AdversarialConfig(student_layer="conv_2", teacher_layer="conv_1").build(CONTEXT), batch()
    scores = term.discriminator(seen.student["conv_2"].mean(dim=(2, 3))).squeeze(1)
    assert term(seen).item() == pytest.approx(-F.logsigmoid(scores).mean().item(), rel=1e-5)


def test_the_discriminator_learns_to_tell_them_apart_and_says_so() -> None:
    torch.manual_seed(0)
    term = AdversarialConfig(lr=1e-2).build(CONTEXT)
    rival = term.rival()
    assert rival is not None
    assert term.metrics() == {}
    seen = batch(64)
    seen.teachers[0]["logits"].add_(1)
    before = term(seen)
    for _ in range(200):
        rival_step(rival, seen)
    told = {name: value.item() for name, value in term.metrics().items()}
    assert told["accuracy_on_student"] > 0.8
    assert told["accuracy_on_teacher"] > 0.8
    assert told["discriminator_loss"] < 1.0  # 1.39 where it cannot tell
    assert term(seen) > before
    assert all(view.grad is None for view in seen.student.values())  # its turn leaves the student alone
    assert not any(value.requires_grad for value in term.metrics().values())


def test_collapse_shows_in_the_diversity() -> None:
    term, seen = AdversarialConfig().build(CONTEXT), batch()
    rival = term.rival()
    assert rival is not None
    for student, expected in [
        (seen.teachers[0]["logits"], 1.0),
        (0.5 * seen.teachers[0]["logits"] + 7, 0.5),
        (seen.teachers[0]["logits"][:1].expand(8, 3), 0.0),
    ]:
        rival.loss(Batch({"logits": student}, seen.teachers, None, seen.indices, seen.inputs))
        assert term.metrics()["diversity"].item() == pytest.approx(expected, abs=1e-6)


# A peer, and inner heads.


def test_mutual_is_its_function_of_a_peer_that_reads_what_the_student_reads() -> None:
    config = MutualConfig(peer=MLPConfig(hidden=[5]), temperature=2.0)
    term, seen = config.build(CONTEXT), batch()
    assert config.needs_labels
    assert not config.needs_teacher
    value = term(seen)
    peer = term.peer(seen.inputs)
    assert value == mutual(seen.student["logits"], peer, seen.labels, 2.0)
    assert term.metrics()["peer_accuracy"] == (peer.argmax(1) == seen.labels).float().mean()
    assert gradients(value, term) == dict.fromkeys(dict(term.named_parameters()), True)
    assert {name.split(".")[0] for name in term.state_dict()} == {"peer"}


def test_inner_heads_are_their_function_with_hints() -> None:
    term, seen = InnerHeadsConfig(temperature=2.0, soft_share=0.4, hint_weight=3.0).build(CONTEXT), batch()
    assert term.layers == [("conv_1", "logits"), ("conv_2", "logits")]  # not the deepest, not what is before a ReLU
    pooled = [seen.student[name].mean(dim=(2, 3)) for name in ("conv_1", "conv_2")]
    logits = [head(feature) for head, feature in zip(term.heads, pooled, strict=True)]
    expected = inner_heads(logits, seen.student["logits"], seen.labels, 2.0, 0.4)
    for regressor, feature in zip(term.regressors, pooled, strict=True):
        expected = expected + 3 * hint(regressor(feature), seen.student["hidden_1"])
    value = term(seen)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients(value, term) == dict.fromkeys(dict(term.named_parameters()), True)
    value.backward()
    assert seen.student["conv_1"].grad is not None
    assert seen.student["logits"].grad is None  # the last layers teach, they are not taught
    assert seen.student["hidden_1"].grad is None


def test_inner_heads_without_hints_have_no_regressor() -> None:
    term = InnerHeadsConfig(student_layers=["hidden_1"]).build(CONTEXT)
    assert term.layers == [("hidden_1", "logits")]
    assert {name.split(".")[0] for name in term.state_dict()} == {"heads"}


# Attention heads.


def test_attention_learns_first_and_is_frozen_then() -> None:
    torch.manual_seed(0)
    config = MultiHeadGraphConfig(heads=2, attention_lr=1e-2, student_layers=["conv_1", "conv_2"],
                                  teacher_layers=["conv_1", "conv_2"])  # fmt: skip
    term = config.build(CONTEXT)
    rival = term.rival()
    assert rival is not None
    early, late = batch(32, epoch=1.9), batch(32, epoch=2.0)  # half of the stage's four epochs
    assert term(early).item() == 0
    assert term(early).requires_grad
    missed = []
    for _ in range(60):
        rival_step(rival, early)
        missed.append(term.metrics()["missed"].item())
    assert missed[-1] < missed[0] / 2
    assert rival.loss(batch(1, epoch=0.0)) is None  # batch normalisation has nothing to compare
    value = term(late)
    assert value > 0
    rival.optimizer.zero_grad()
    value.backward()
    assert all(parameter.grad is None for parameter in rival.module.parameters())
    assert all(parameter.grad is not None for parameter in term.connectors[0].parameters())  # 4 -> 6 channels
    assert len(list(term.connectors[1].parameters())) == 0
    assert rival.loss(late) is None
    assert not any(module.training for module in rival.module.modules())
    assert value == multi_head_graph(*graphs_of(term, late))
    assert torch.isfinite(term(batch(1, epoch=3.0)))


def graphs_of(term: Any, seen: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The scores of both sides, with the singular vectors that torch's SVD finds, sample by sample."""
    views = seen.student, seen.teachers[0]
    ours, theirs = [], []
    for place, (a, b) in enumerate(term.layers):
        mine, other = term.connectors[place](views[0][a]).flatten(2), views[1][b].flatten(2)  # (B, C, H·W)
        directions, wanted = [], []
        for one, two in zip(mine, other, strict=True):
            target = torch.linalg.svd(two).U[:, 0]
            target = target * target.sum().sign()
            candidates = torch.linalg.svd(one).U[:, :4]
            cosines = candidates.T @ target
            best = cosines.abs().argmax()
            directions.append(candidates[:, best] * cosines[best].sign())
            wanted.append(target)
        ours.append(torch.stack(directions))
        theirs.append(torch.stack(wanted))
    (attention,) = term.attention
    return [attention.scores(*ours)], [attention.scores(*theirs)]


# What cannot be built.


@pytest.mark.parametrize(
    ("config", "context", "field", "message"),
    [
        (AdversarialConfig(student_layer="fc"), CONTEXT, "student_layer", "no layer 'fc'"),
        (
            AdversarialConfig(teacher_layer="hidden_1"),
            CONTEXT,
            "teacher_layer",
            "is 3 wide, the teacher's 'hidden_1' 7",
        ),
        (AdversarialConfig(), Context(SHAPES), "type", "needs a teacher"),
        (MutualConfig(peer=MLPConfig(classes=4)), CONTEXT, "peer", "the peer has 4 classes, the data has 3"),
        (MutualConfig(peer=CNNConfig(channels=[2] * 9)), CONTEXT, "peer", "channels: 9 poolings"),
        (MutualConfig(peer=MLPConfig(), student_layer="hidden_1"), CONTEXT, "student_layer", "5 outputs"),
        (InnerHeadsConfig(student_layers=["fc"]), CONTEXT, "student_layers", "no layer 'fc'"),
        (InnerHeadsConfig(student_layers=["logits"]), CONTEXT, "student_layers", "not be an inner one"),
        (InnerHeadsConfig(student_layer="hidden_1"), CONTEXT, "student_layer", "5 outputs"),
        (InnerHeadsConfig(), Context({"hidden_1": (5,), "logits": (3,)}, classes=3), "student_layers", "at least two"),
        (MultiHeadGraphConfig(), Context({"hidden_1": (5,), "logits": (3,)}, [WIDE]), "student_layers", "2 pairs"),
    ],
)
def test_what_cannot_be_built(config: Any, context: Context, field: str, message: str) -> None:
    with pytest.raises(LossError, match=message) as caught:
        config.build(context)
    assert caught.value.field == field
    assert field in type(config).model_fields


def test_labels_are_needed() -> None:
    seen = batch()
    bare = Batch(seen.student, seen.teachers, None, seen.indices, seen.inputs)
    for config in (MutualConfig(peer=MLPConfig()), InnerHeadsConfig()):
        assert config.needs_labels
        with pytest.raises(ValueError, match="needs labels"):
            config.build(CONTEXT)(bare)


# In the loop.

RIVAL = {"type": "adversarial", "hidden": [16], "weight": 0.5}
MUTUAL = {"type": "mutual", "peer": {"type": "cnn", "channels": [4], "hidden": [], "batch_norm": True}}
HEADS = {"type": "inner_heads", "hint_weight": 0.1}
GRAPH = {"type": "multi_head_graph", "heads": 2}


def document(tiny: dict[str, Any], *losses: dict[str, Any]) -> dict[str, Any]:
    """The tiny job with these losses beside cross-entropy, on two hidden layers, its last batch of one sample."""
    tiny |= {"baseline": False, "data": {"type": "digits", "train_samples": 193}}
    tiny["teachers"][0]["model"] = {"type": "mlp", "hidden": [24, 16], "dropout": 0.3}
    tiny["student"]["model"] = {"type": "mlp", "hidden": [10, 8], "dropout": 0.2}
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}, *losses]
    return tiny


@pytest.mark.parametrize("losses", [(RIVAL,), (MUTUAL, HEADS), (GRAPH, RIVAL)], ids=["rival", "peer", "two rivals"])
def test_paused_again_and_again_it_ends_in_the_same_bytes(light: Any, tiny: dict[str, Any], losses: Any) -> None:
    spec = document(tiny, *losses)
    wanted, whole = light(spec)
    resume, points, found, attempts = None, {}, None, 0
    while found is None and attempts < 100:
        reporter, attempts = RecordingReporter("pause", request_at=4), attempts + 1
        try:
            found, _ = light(spec, reporter, resume=resume)
        except Interrupted:
            resume = reporter.checkpoints[-1].path
            torch.rand(7)  # whatever the next process has done with its generators
        points |= {(stage, step, name): value for stage, step, row in reporter.points for name, value in row.items()}
    assert found is not None
    assert attempts > 3
    assert found["digests"] == wanted["digests"]
    assert points == {(stage, step, name): value for stage, step, row in whole.points for name, value in row.items()}


def test_the_discriminator_s_metrics_are_reported(light: Any, tiny: dict[str, Any]) -> None:
    _, reporter = light(document(tiny, RIVAL))
    rows = [row for stage, _, row in reporter.points if stage == "distill-1" and "train/loss" in row]
    assert len(rows) == 10
    for row in rows:
        for name in ("accuracy_on_student", "accuracy_on_teacher"):
            assert 0 <= row[f"train/2/{name}"] <= 1
        assert row["train/2/discriminator_loss"] > 0
        assert row["train/2/diversity"] > 0


def test_student_and_discriminator_take_turns_with_optimizers_of_their_own(
    light: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = document(tiny, RIVAL)
    job = open_job(parse_spec(spec), RecordingReporter(), places=Places(tmp_path), checkpoints=tmp_path / "checkpoints",
                   choices=None, resume=None, teacher_weights={})  # fmt: skip
    job.state.models["teacher-1"] = job.network("teacher").state_dict()
    training = job.prepare(job.stages[1])
    (discriminator,) = [rival.module for rival in training.rivals.values()]
    theirs = {id(parameter) for parameter in discriminator.parameters()}
    (adam,) = [rival.optimizer for rival in training.rivals.values()]
    assert theirs == {id(parameter) for group in adam.param_groups for parameter in group["params"]}
    students = {id(parameter) for group in training.optimizer.param_groups for parameter in group["params"]}
    assert students == {id(parameter) for parameter in training.model.parameters()}
    assert any("discriminator" in name for name in training.snapshot()["terms"])

    turns: list[str] = []
    make = Update.make
    monkeypatch.setattr(Update, "make", lambda update, rate: turns.append("student") or make(update, rate))
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: turns.append(type(optimizer).__name__))
    try:
        light(spec)
    finally:
        handle.remove()
    turns = [each for each in turns if each != "SGD"]  # an update's first one is a step of its optimizer
    assert turns == ["student"] * 10 + ["student", "Adam"] * 10  # the teacher's stage, then two epochs of five steps


def test_a_plan_knows_that_a_peer_and_inner_heads_teach(tiny: dict[str, Any]) -> None:
    for losses, warned in [((MUTUAL,), False), ((HEADS,), False), ((), True), (({**MUTUAL, "weight": 0.0},), True)]:
        warnings = make_plan(parse_spec(document(tiny, *losses))).warnings
        assert any("no stage learns from the teacher" in warning for warning in warnings) == warned


def test_a_peer_may_read_words() -> None:
    peer = {"type": "text_cnn", "embedding": 4, "channels": 4, "sizes": [3]}
    spec = parse_spec(
        {
            "data": {"type": "ag_news", "vocabulary": 50, "length": 8},
            "teachers": [],
            "student": {"model": peer},
            "stages": [{"losses": [{"type": "cross_entropy"}, {"type": "mutual", "peer": peer}]}],
        }
    )
    plan = make_plan(spec)
    assert plan.stages[-1].losses[1].parameters == plan.student.parameters
