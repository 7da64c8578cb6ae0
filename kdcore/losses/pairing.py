"""Which hidden layer of the student is matched with which of the teacher: as named, or what fits.

Views are read by their shape: (C, H, W) is a map (a sequence is a map of width 1: channels, positions, 1), (D,) a
vector. A name that ends in `_pre` is the view before the activation: it takes part only where it is named or where
such views are asked for.
"""

import math
from itertools import groupby, pairwise
from typing import ClassVar, Literal

from pydantic import Field

from kdcore.losses.base import Context, LossError, Shapes, TaughtLossConfig, layer_shape

Kind = Literal["map", "vector", "any", "preactivation"]
Pairs = list[tuple[str, str]]
SIZES: dict[Kind, tuple[int, ...]] = {"map": (3,), "vector": (1,), "any": (3, 1), "preactivation": (3,)}
"""How many dimensions a view of the kind has, without the batch."""
WORDS: dict[Kind, str] = {
    "map": "map (C, H, W)",
    "vector": "vector (D,)",
    "any": "map (C, H, W) or vector (D,)",
    "preactivation": "map (C, H, W) before its activation, named …_pre",
}


class LayerLossConfig(TaughtLossConfig):
    """Base of every loss on one hidden layer of each side."""

    student_layer: str | None = None
    """The student's view that is matched; where left out with `teacher_layer`, the pair that fits (see the plan)."""
    teacher_layer: str | None = None
    """The teacher's view that is its example."""

    def pair(self, context: Context, kind: Kind, depth: float = 1.0) -> tuple[str, str]:
        """The student's and the teacher's layer.

        Args:
            kind: what the views must be; `any`: both maps, or both vectors.
            depth: which of the pairs that fit is taken, as a share of the depth: 1 is the deepest.

        Raises:
            LossError: a named layer is not there or of another kind, or nothing fits.
        """
        teacher = self.shapes_of_teacher(context)
        if self.student_layer is not None and self.teacher_layer is not None:
            check_kind(context.student, self.student_layer, kind, "student_layer", "student")
            check_kind(teacher, self.teacher_layer, kind, "teacher_layer", "teacher")
            both = len(context.student[self.student_layer]), len(teacher[self.teacher_layer])
            if both[0] != both[1]:
                raise LossError("teacher_layer", _unlike(self.student_layer, self.teacher_layer, context, teacher))
            return self.student_layer, self.teacher_layer
        return self._fitting(context, teacher, kind, depth)

    def _fitting(self, context: Context, teacher: Shapes, kind: Kind, depth: float) -> tuple[str, str]:
        """The pair that fits, or the partner of the one layer that is named."""
        if self.student_layer is not None:
            check_kind(context.student, self.student_layer, kind, "student_layer", "student")
            return self.student_layer, _partner(self.student_layer, context.student, teacher, "teacher_layer")
        if self.teacher_layer is not None:
            check_kind(teacher, self.teacher_layer, kind, "teacher_layer", "teacher")
            return _partner(self.teacher_layer, teacher, context.student, "student_layer"), self.teacher_layer
        pairs = fitting_pairs(context.student, teacher, kind)
        return pairs[max(0, math.ceil(round(depth * len(pairs), 6)) - 1)]


class LayersLossConfig(TaughtLossConfig):
    """Base of every loss on several hidden layers of each side."""

    in_order: ClassVar[bool] = False
    """Whether its value depends on which layer comes after which."""

    student_layers: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """The student's views that are matched, in order of depth; left out with `teacher_layers`: the pairs that fit."""
    teacher_layers: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """The teacher's views that are their examples, as many."""

    def pairs(self, context: Context, kind: Kind, least: int = 1) -> Pairs:
        """The student's and the teacher's layers, at least `least` pairs.

        Raises:
            LossError: as for one pair; or the two lists differ in length, there are too few, or, where that matters,
                one names a deeper layer before a shallower one.
        """
        teacher = self.shapes_of_teacher(context)
        if (self.student_layers is None) != (self.teacher_layers is None):
            missing = "student_layers" if self.student_layers is None else "teacher_layers"
            raise LossError(missing, "name the layers of both sides, or of neither")
        if self.student_layers is None or self.teacher_layers is None:
            found = fitting_pairs(context.student, teacher, kind, "layers")
        else:
            if len(self.student_layers) != len(self.teacher_layers):
                counts = f"{len(self.student_layers)} and {len(self.teacher_layers)} layers"
                raise LossError("teacher_layers", f"{counts} are named; name as many of the teacher as of the student")
            found = list(zip(self.student_layers, self.teacher_layers, strict=True))
            for ours, theirs in found:
                check_kind(context.student, ours, kind, "student_layers", "student")
                check_kind(teacher, theirs, kind, "teacher_layers", "teacher")
                if len(context.student[ours]) != len(teacher[theirs]):
                    raise LossError("teacher_layers", _unlike(ours, theirs, context, teacher))
            if self.in_order:
                check_order(context.student, self.student_layers, "student_layers", "student")
                check_order(teacher, self.teacher_layers, "teacher_layers", "teacher")
        if len(found) < least:
            counts = f"{least} pairs of layers are needed, {len(found)} {'fit' if len(found) != 1 else 'fits'}"
            raise LossError("student_layers", f"{counts}; name more layers of both sides, or use deeper models")
        return found


def check_kind(shapes: Shapes, layer: str, kind: Kind, field: str, owner: str) -> None:
    """Raise `LossError` unless the view is there and of the kind."""
    shape = layer_shape(shapes, layer, field, owner)
    if len(shape) not in SIZES[kind] or (kind == "preactivation" and not layer.endswith("_pre")):
        others = ", ".join(map(repr, candidates(shapes, kind))) or "none"
        message = f"the {owner}'s {layer!r} has the shape {shape} and is no {WORDS[kind]}; such layers of it: {others}"
        raise LossError(field, message)


def check_order(shapes: Shapes, layers: list[str], field: str, owner: str) -> None:
    """Raise `LossError` where a layer is named before a shallower one."""
    places = list(shapes)
    for first, second in pairwise(layers):
        if places.index(first) > places.index(second):
            right = ", ".join(sorted(layers, key=places.index))
            message = f"the {owner}'s {first!r} is deeper than {second!r}; name its layers in order of depth: {right}"
            raise LossError(field, message)


def check_places(student: Shapes, teacher: Shapes, pairs: Pairs, field: str) -> None:
    """Raise `LossError` where all maps are compared at one place: normalised over it they are the same."""
    sizes = [[min(a, b) for a, b in zip(student[ours][1:], teacher[theirs][1:], strict=True)] for ours, theirs in pairs]
    if all(math.prod(size) == 1 for size in sizes):
        found = ", ".join(f"{ours!r} {student[ours]} and {theirs!r} {teacher[theirs]}" for ours, theirs in pairs)
        message = f"{found}: a map of 1x1 has no pattern of places to compare; name earlier layers"
        raise LossError(field, message)


def candidates(shapes: Shapes, kind: Kind) -> list[str]:
    """The views of a kind, in order of depth; the logits are none of them."""
    return _hidden(shapes, SIZES[kind], before=kind == "preactivation")


def _hidden(shapes: Shapes, sizes: tuple[int, ...], *, before: bool) -> list[str]:
    """The hidden views with so many dimensions, those before their activation or all others."""
    named = [name for name in shapes if name != "logits" and name.endswith("_pre") == before]
    return [name for name in named if len(shapes[name]) in sizes]


def stage_ends(shapes: Shapes, names: list[str]) -> list[str]:
    """The last of each run of maps of one height and width; all of them where the size never changes."""
    runs = [list(run) for _, run in groupby(names, key=lambda name: shapes[name][1:])]
    return [run[-1] for run in runs] if len(runs) > 1 else names


def fitting_pairs(student: Shapes, teacher: Shapes, kind: Kind, field: str = "layer") -> Pairs:
    """As many pairs as the shallower side has stages, in order, alike in depth and, of maps, in size.

    `any`: pairs of maps where both sides have maps, else of vectors.

    Raises:
        LossError: one side has no view of the kind.
    """
    if kind == "any":
        kind = "map" if candidates(student, "map") and candidates(teacher, "map") else "vector"
    ours, theirs = (stage_ends(shapes, candidates(shapes, kind)) for shapes in (student, teacher))
    for names, owner, shapes in ((ours, "student", student), (theirs, "teacher", teacher)):
        if not names:
            there = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
            raise LossError(f"{owner}_{field}", f"the {owner} has no hidden {WORDS[kind]}; it has {there}")
    if len(ours) > len(theirs):
        return [(b, a) for a, b in _in_order(theirs, ours, teacher, student)]
    return _in_order(ours, theirs, student, teacher)


def _in_order(few: list[str], many: list[str], of_few: Shapes, of_many: Shapes) -> Pairs:
    """The cheapest way to give each of the few a partner among the many without crossing, by dynamic programming."""
    best: dict[int, tuple[float, Pairs]] = {-1: (0.0, [])}
    for place, name in enumerate(few):
        shares = (place + 1) / len(few)
        following: dict[int, tuple[float, Pairs]] = {}
        for last, (cost, pairs) in best.items():
            for index in range(last + 1, len(many) - (len(few) - place - 1)):
                other = many[index]
                total = cost + abs(shares - (index + 1) / len(many)) + _unlikeness(of_few[name], of_many[other])
                if index not in following or total < following[index][0]:
                    following[index] = (total, [*pairs, (name, other)])
        best = following
    return min(best.values(), key=lambda entry: entry[0])[1]


def _unlikeness(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How often the larger map would have to be halved to have the smaller one's area; 0 for vectors."""
    return abs(math.log2(math.prod(one[1:]) / math.prod(other[1:])))


def _partner(layer: str, shapes: Shapes, others: Shapes, field: str) -> str:
    """The view of the other side that is nearest in depth and size, of those as near to their activation."""
    if layer == "logits":
        return layer
    sizes, before = (len(shapes[layer]),), layer.endswith("_pre")
    ours, theirs = _hidden(shapes, sizes, before=before), _hidden(others, sizes, before=before)
    if not theirs:
        there = ", ".join(f"{name!r} {shape}" for name, shape in others.items())
        message = f"nothing on the other side is like {layer!r} {shapes[layer]}; it has {there}; name a layer"
        raise LossError(field, message)
    if layer in stage_ends(shapes, ours):  # the same partner as among the pairs that fit, as a rule
        ours, theirs = stage_ends(shapes, ours), stage_ends(others, theirs)
    share = (ours.index(layer) + 1) / len(ours)
    costs = {
        name: abs(share - (place + 1) / len(theirs)) + _unlikeness(shapes[layer], others[name])
        for place, name in enumerate(theirs)
    }
    return min(costs, key=lambda name: costs[name])


def _unlike(ours: str, theirs: str, context: Context, teacher: Shapes) -> str:
    return (
        f"the student's {ours!r} has the shape {context.student[ours]}, the teacher's {theirs!r} {teacher[theirs]};"
        " name two maps or two vectors"
    )
