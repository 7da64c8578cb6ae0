"""Every loss is a function of its name, in its own file, whose value is proven; a new one without proofs fails here.

A test counts as a proof of a loss where its name says what it proves and it calls the function: itself, or by way of
what it is parametrised with. A name in a comment, or a test of the loss's Config, proves nothing.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from kdcore import losses
from kdcore.losses import LOSSES, BaseLossConfig

ROOT = Path(__file__).parents[2]
NAMES = [config.model_fields["type"].default for config in LOSSES if config.__module__.startswith("kdcore.")]
ARGUMENTS = {
    "cross_entropy": "student_logits, labels, label_smoothing=0.0",
    "kd": "student_logits, teacher_logits, temperature=4.0, standardize=False",
    "soft_cross_entropy": "student_logits, teacher_logits, temperature=1.0",
    "logit_mse": "student_logits, teacher_logits",
    "hard_distillation": "student_logits, teacher_logits",
    "binary_kd": "student_logits, teacher_logits, temperature=1.0",
    "jsd": "student_logits, teacher_logits, beta=0.5, temperature=1.0",
    "dkd": "student_logits, teacher_logits, labels, alpha=1.0, beta=8.0, temperature=4.0",
    "dist": "student_logits, teacher_logits, beta=1.0, gamma=1.0, temperature=1.0",
    "nkd": "student_logits, teacher_logits, labels, gamma=1.5, temperature=1.0",
    "mse": "student_outputs, labels",
    "binary_cross_entropy": "student_logits, labels, pos_weight=None",
    "multi_teacher": "student_logits, teacher_logits, labels=None, weighting='mean_logits', weights=None,"
    " temperature=4.0, choice=0",
    "hint": "student_feature, teacher_feature",
    "knowledge_matching": "student_features, teacher_features",
    "attention_transfer": "student_map, teacher_map, p=2",
    "similarity_preserving": "student_feature, teacher_feature",
    "neuron_selectivity": "student_map, teacher_map",
    "variational_information": "student_mean, teacher_map, variance",
    "flow_of_solution": "student_pair, teacher_pair",
    "factor_transfer": "student_factor, teacher_factor",
    "activation_boundary": "student_maps, teacher_maps, margin=1.0",
    "overhaul": "student_maps, teacher_maps, margins",
    "review": "student_maps, teacher_maps",
    "singular_value": "student_maps, teacher_maps, k=1",
    "contrastive": "student_scores, teacher_scores, noise",
    "simkd": "student_feature, teacher_feature",
    "semckd": "student_maps, teacher_maps, attention",
    "srrl": "student_feature, teacher_feature, student_logits, teacher_logits",
    "rkd_distance": "student_embedding, teacher_embedding",
    "rkd_angle": "student_embedding, teacher_embedding",
    "probabilistic_transfer": "student_embedding, teacher_embedding",
    "correlation_congruence": "student_embedding, teacher_embedding",
    "absolute_teacher": "student_embedding, teacher_embedding",
    "relative_teacher": "student_embedding, teacher_embedding",
    "instance_graph": "student_maps, teacher_maps",
    "multi_head_graph": "student_scores, teacher_scores",
    "adversarial": "student_scores",
    "mutual": "student_logits, peer_logits, labels, temperature=1.0",
    "inner_heads": "head_logits, last_logits, labels, temperature=3.0, soft_share=0.3",
}
"""What callers rely on; `hierarchical_context(student_map, teacher_map)` is there as well, the parts of `review`."""
PROOFS = {
    "a value by hand": "by_hand",
    "the numerical gradient": "gradient_is_the_numerical_one|gradients_precision",
    "float32 and bf16 against float64": "precision",
    "extremes, ties and a batch of one": "stay_finite|precision_and_extremes",
    "the least value at equality": "at_equality|is_least|is_zero_beyond",
}
WITHOUT_EQUALITY = {
    "hard_distillation": "its target is a decision, which no logits equal",
    "contrastive": "it is about pairs among negatives, and has no value of its own at equality",
    "adversarial": "it sees the discriminator's scores of the student alone",
    "mutual": "the peer's cross-entropy is part of it",
    "inner_heads": "the heads' cross-entropy is part of it",
}


def functions() -> dict[FunctionType, str]:
    """Each loss's function and its name."""
    return {getattr(losses, name): name for name in NAMES if inspect.isfunction(getattr(losses, name, None))}


def named(code: CodeType) -> Iterator[str]:
    """The names that a function looks up, inside its own functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from named(constant)


def called(thing: object, known: dict[FunctionType, str], depth: int = 2) -> set[str]:
    """The losses that a function calls: itself, or through others of its module."""
    if not isinstance(thing, FunctionType):
        return set()
    if thing in known:
        return {known[thing]}
    inner = [thing.__globals__.get(name) for name in named(thing.__code__)]
    return set().union(*(called(each, known, depth - 1) for each in inner)) if depth else set()


def given(test: Callable[..., Any], module: ModuleType) -> Iterator[object]:
    """What a test is parametrised with; in place of a name what a table of its module has under it."""
    tables = [value for value in vars(module).values() if isinstance(value, dict)]
    for mark in getattr(test, "pytestmark", []):
        for value in mark.args[1] if mark.name == "parametrize" else ():
            if isinstance(value, str):
                yield from (table[value] for table in tables if value in table)
            else:
                yield value


def proofs(modules: Iterable[ModuleType]) -> dict[str, set[str]]:
    """What is proven of each loss by the tests of these modules."""
    known = functions()
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for module in modules:
        for name, test in vars(module).items():
            kinds = {kind for kind, words in PROOFS.items() if re.search(words, name)}
            if name.startswith("test_") and kinds:
                for loss in set().union(*(called(each, known) for each in (test, *given(test, module)))):
                    found[loss] |= kinds
    return found


@pytest.fixture(scope="module")
def proven() -> dict[str, set[str]]:
    folder = ROOT / "tests" / "kdcore"
    paths = [folder / "test_losses.py", *(folder / "losses").glob("test_*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return proofs([importlib.import_module(name) for name in names])


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.model_fields["type"].default)
def test_it_is_a_function_of_its_name_in_its_own_file(config: type[BaseLossConfig]) -> None:
    name = config.model_fields["type"].default
    function = getattr(losses, name)
    assert inspect.isfunction(function), f"from kdcore.losses import {name} gives no function"
    assert function.__module__ == config.__module__ == f"kdcore.losses.{name}"
    assert name in losses.__all__
    arguments = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    assert ", ".join(map(str, arguments)) == ARGUMENTS[name]
    assert inspect.getdoc(function), f"{name} does not say what it is"


def test_the_parts_of_review_are_there_by_their_own_name() -> None:
    assert list(inspect.signature(losses.hierarchical_context).parameters) == ["student_map", "teacher_map"]


@pytest.mark.parametrize("name", NAMES)
def test_its_value_is_proven(name: str, proven: dict[str, set[str]]) -> None:
    wanted = PROOFS.keys() - ({"the least value at equality"} if name in WITHOUT_EQUALITY else set())
    assert wanted - proven[name] == set(), f"no test in tests/kdcore proves this of {name}"


@pytest.mark.parametrize("name", WITHOUT_EQUALITY)
def test_no_exception_is_left_over(name: str, proven: dict[str, set[str]]) -> None:
    assert "the least value at equality" not in proven[name]


MODULE = """
import pytest
from kdcore.losses import KDConfig, dist, kd, mse

TABLE = {"distances": lambda s, t: dist(s, t)}

def test_kd_by_hand():
    "Not dkd(...), which is only spoken of."
    assert kd

def test_nkd_by_hand():
    assert KDConfig() and "nkd"

def test_kd_is_quick():
    assert kd

@pytest.mark.parametrize("name", ["distances", "others"])
def test_precision(name):
    TABLE[name]

@pytest.mark.parametrize("function", [mse])
def test_extremes_and_ties_stay_finite(function):
    function
"""


def test_words_alone_and_tests_of_something_else_prove_nothing(tmp_path: Path) -> None:
    """Of tests that speak of losses, what counts is which one they call, and what their names say they prove."""
    (tmp_path / "module.py").write_text(MODULE)
    spec = importlib.util.spec_from_file_location("a_module_of_tests", tmp_path / "module.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {name: kinds for name, kinds in proofs([module]).items() if kinds} == {
        "kd": {"a value by hand"},
        "dist": {"float32 and bf16 against float64"},
        "mse": {"extremes, ties and a batch of one"},
    }
