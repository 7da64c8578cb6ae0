"""What a spec may name: each loss, model and data source with its JSON Schema and where it is from."""

import inspect
from typing import Any

from kdcore.config import Config
from kdcore.data import DATA, BaseDataConfig
from kdcore.losses import LOSSES
from kdcore.models import MODELS
from kdcore.spec import JobSpec


def catalog_losses() -> list[dict[str, Any]]:
    """`{type, title, source, doc, schema, needs_teacher, needs_labels}` of every loss."""
    return [
        {
            **_entry(loss, loss.title, loss.source),
            "needs_teacher": loss.needs_teacher,
            "needs_labels": loss.needs_labels,
        }
        for loss in LOSSES
    ]


def catalog_models() -> list[dict[str, Any]]:
    """`{type, title, source, doc, schema}` of every model family."""
    return [_entry(model, model.title, model.source) for model in MODELS]


def catalog_data() -> list[dict[str, Any]]:
    """`{type, title, source, doc, schema, input_shape, classes, train, test}` of every data source.

    `train` counts the samples that are published for training, validation included. Of a source that the spec itself
    describes, shapes, classes and counts are none.
    """
    return [{**_entry(source, source.title, source.source), **_known(source)} for source in DATA]


def _known(source: type[BaseDataConfig]) -> dict[str, Any]:
    if any(field.is_required() for field in source.model_fields.values()):
        return dict.fromkeys(("input_shape", "classes", "train", "test"))
    facts = source(type=source.model_fields["type"].default).facts()
    return {
        "input_shape": list(facts.input_shape),
        "classes": list(facts.classes),
        "train": facts.train + facts.validation,
        "test": facts.test,
    }


def spec_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a spec as it is submitted: what has a default may be left out."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema(mode="validation")}


def _entry(config: type[Config], title: str, source: str) -> dict[str, Any]:
    return {
        "type": config.model_fields["type"].default,
        "title": title,
        "source": source,
        "doc": inspect.cleandoc(config.__doc__ or ""),
        "schema": config.model_json_schema(mode="validation"),
    }
