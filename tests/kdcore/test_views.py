"""What a network reads of a sample: values by hand, facts that agree with them, and what has no such view."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdcore.data import VIEWS, DataFacts, ViewError
from kdcore.data.views import BagOfWordsConfig, BaseViewConfig, GreyConfig, ResizeConfig, RowsConfig
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


@pytest.mark.parametrize("view", [GreyConfig(), RowsConfig(), ResizeConfig(size=2), None], ids=repr)
def test_the_reader_normalises_what_is_seen(view: BaseViewConfig | None) -> None:
    reader = Reader(COLOUR, view)
    means = torch.tensor(COLOUR.mean).view(3, 1, 1).expand(2, 3, 4, 6)
    assert reader(means).abs().max() < 1e-6
    assert reader(means).shape[1:] == reader.facts.input_shape


@pytest.mark.parametrize(
    ("view", "facts"),
    [
        (GreyConfig(), replace(COLOUR, input_shape=(1, 4, 6))),
        (GreyConfig(), TEXT),
        (ResizeConfig(size=3), TEXT),
        (RowsConfig(), TEXT),
        (BagOfWordsConfig(), COLOUR),
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
    assert set(VIEWS) == {GreyConfig, ResizeConfig, RowsConfig, BagOfWordsConfig}
