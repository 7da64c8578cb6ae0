"""What a network reads of a sample: values by hand, facts that agree with them, and what has no such view."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdcore.data import VIEWS, DataFacts, ViewError
from kdcore.data.views import (
    BagOfWordsConfig,
    BaseViewConfig,
    FieldConfig,
    GreyConfig,
    NumbersConfig,
    PictureConfig,
    ResizeConfig,
    RowsConfig,
)
from kdcore.inputs import Reader
from kdcore.plan import make_plan
from kdcore.spec import SpecError, parse_spec

COLOUR = DataFacts((3, 4, 6), ("a", "b"), 9, 1, 2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
TEXT = DataFacts((5,), ("a", "b"), 9, 1, 2, (0.0,), (1.0,), vocabulary=7)


def test_grey_is_the_brightness() -> None:
    picture = torch.zeros(1, 3, 4, 6)
    picture[0, :, 0, 0] = torch.tensor([1.0, 0.5, 0.25])
    grey = GreyConfig()
    facts = grey.facts(COLOUR)
    assert facts.input_shape == (1, 4, 6)
    assert grey.apply(picture, facts)[0, 0, 0, 0].item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert facts.mean[0] == pytest.approx(0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.3)
    assert grey.apply(torch.ones(2, 3, 4, 6), facts) == pytest.approx(torch.ones(2, 1, 4, 6))


def test_resize_averages_what_it_merges() -> None:
    picture = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    small = ResizeConfig(size=1).apply(picture, COLOUR)
    assert small.shape == (1, 3, 1, 1)
    assert small[0, 0, 0, 0].item() == pytest.approx(7.5)


def test_rows_are_in_order_with_all_channels() -> None:
    pictures = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    rows = RowsConfig()
    facts = rows.facts(COLOUR)
    found = rows.apply(pictures, facts)
    assert found.shape == (2, *facts.input_shape) == (2, 4, 18)
    assert found[1, 2].tolist() == pictures[1, :, 2].flatten().tolist()
    assert len(facts.mean) == len(facts.std) == 18
    assert facts.mean[:7] == (0.1,) * 6 + (0.2,)


def test_bag_of_words_counts_and_forgets_padding() -> None:
    bag = BagOfWordsConfig()
    facts = bag.facts(TEXT)
    found = bag.apply(torch.tensor([[2, 3, 2, 0, 0], [6, 0, 0, 0, 0]]), facts)
    assert found.tolist() == [[0, 0, 2, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]
    assert facts.vocabulary is None


@pytest.mark.parametrize(
    "view",
    [GreyConfig(), RowsConfig(), ResizeConfig(size=2), PictureConfig(colour="bgr"), PictureConfig(colour="grey"), None],
    ids=repr,
)
def test_the_reader_normalises_what_is_seen(view: BaseViewConfig | None) -> None:
    reader = Reader(COLOUR, view)
    means = torch.tensor(COLOUR.mean).view(3, 1, 1).expand(2, 3, 4, 6)
    assert reader(means).abs().max() < 1e-6
    assert reader(means).shape[1:] == reader.facts.input_shape


def read(view: BaseViewConfig, channels: int = 3) -> torch.Tensor:
    """What the first pixel of a picture (2, C, 4, 6) becomes, whose channels are 0, 0.5 and 1."""
    facts = replace(COLOUR, input_shape=(channels, 4, 6), mean=COLOUR.mean[:channels], std=COLOUR.std[:channels])
    reader = Reader(facts, view)
    found: torch.Tensor = reader(torch.tensor([0.0, 0.5, 1.0])[:channels].view(-1, 1, 1).expand(2, channels, 4, 6))
    assert tuple(found.shape[1:]) == reader.facts.input_shape
    return found[0, :, 0, 0]


@pytest.mark.parametrize(
    ("view", "channels", "wanted"),
    [
        (PictureConfig(normalise="none"), 3, [0, 0.5, 1]),
        (PictureConfig(normalise="bytes", colour="bgr", size=2), 3, [255, 127.5, 0]),
        (PictureConfig(normalise="imagenet"), 3, [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        (PictureConfig(normalise="imagenet", colour="bgr"), 3,
         [(1 - 0.406) / 0.225, (0.5 - 0.456) / 0.224, -0.485 / 0.229]),
        (PictureConfig(normalise="imagenet", colour="rgb"), 1, [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
        (PictureConfig(colour="rgb", size=8), 1, [-0.25] * 3),
        (PictureConfig(mean=[0.5], std=[0.5]), 3, [-1, 0, 1]),
        (PictureConfig(mean=[0.0, 0.5, 1.0], std=[1.0, 2.0, 4.0], colour="bgr"), 3, [1, 0, -0.25]),
        (PictureConfig(mean=[0.0], std=[1.0], colour="grey"), 3, [0.587 / 2 + 0.114]),
    ],
)  # fmt: skip
def test_a_picture_is_what_another_network_wants(view: BaseViewConfig, channels: int, wanted: list[float]) -> None:
    assert read(view, channels).tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("view", "shape", "wanted"),
    [
        (NumbersConfig(), (3,), [6.0, 8.0, 12.0]),
        (NumbersConfig(mean=[2.0], std=[4.0]), (2, 3), [1.0, 1.5, 2.5]),
        (NumbersConfig(mean=[6.0, 7.0, 8.0], std=[1.0, 2.0, 4.0]), (2, 3), [0.0, 0.5, 1.0]),
    ],
)
def test_numbers_are_what_another_network_wants(
    view: NumbersConfig, shape: tuple[int, ...], wanted: list[float]
) -> None:
    facts = replace(COLOUR, input_shape=shape)
    found = Reader(facts, view)(torch.tensor([6.0, 8.0, 12.0]).expand(2, *shape))
    assert found.tolist() == torch.tensor(wanted).expand(2, *shape).tolist()


@pytest.mark.parametrize("field", ["mean", "std"])
def test_there_is_a_number_for_each_or_one_for_all(field: str) -> None:
    with pytest.raises(ViewError, match="there are 2 numbers, a sample has 3") as caught:
        NumbersConfig.model_validate({"type": "numbers", field: [1.0, 2.0]}).facts(replace(COLOUR, input_shape=(3,)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("view", "field"),
    [
        (PictureConfig(mean=[0.0]), "std"),
        (PictureConfig(mean=[0.0, 1.0], std=[1.0]), "mean"),
        (PictureConfig(normalise="imagenet", colour="grey"), "normalise"),
    ],
)
def test_numbers_that_do_not_fit_the_channels(view: BaseViewConfig, field: str) -> None:
    with pytest.raises(ViewError) as caught:
        view.facts(COLOUR)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("view", "facts"),
    [
        (GreyConfig(), replace(COLOUR, input_shape=(1, 4, 6))),
        (GreyConfig(), TEXT),
        (ResizeConfig(size=3), TEXT),
        (RowsConfig(), TEXT),
        (PictureConfig(size=3), TEXT),
        (BagOfWordsConfig(), COLOUR),
        (NumbersConfig(), COLOUR),
        (NumbersConfig(), TEXT),
    ],
)
def test_samples_without_such_a_view(view: BaseViewConfig, facts: DataFacts) -> None:
    with pytest.raises(ViewError, match="is a view of") as caught:
        view.facts(facts)
    assert caught.value.field in type(view).model_fields


@pytest.mark.parametrize("place", [("student",), ("teachers", 0)])
def test_a_view_that_the_data_lacks_is_refused_at_its_place(place: tuple[Any, ...]) -> None:
    document: dict[str, Any] = {
        "data": {"type": "digits"},
        "teachers": [{"model": {"type": "mlp"}}],
        "student": {"model": {"type": "mlp"}},
    }
    owner: Any = document
    for part in place:
        owner = owner[part]
    owner["view"] = {"type": "bag_of_words"}
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(document))
    assert [loc for loc, _ in caught.value.errors] == [(*place, "view", "type")]


def test_every_view_is_tried_here() -> None:
    fields = {FieldConfig}  # tests/kdcore/test_upload_fields.py
    pictures = {GreyConfig, ResizeConfig, PictureConfig}
    assert set(VIEWS) == {*pictures, NumbersConfig, RowsConfig, BagOfWordsConfig} | fields
