"""Writes docs/settings.md from storage.settings.Settings: `python docs/make_settings.py`."""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from storage.settings import Settings

HEAD = """\
# Settings

Every setting of API, worker and command line, read from environment variables. An empty variable counts as
left out. Lists and mappings are JSON; a boolean is `true` or `false`.
All processes of one deployment need the same values, but for `DISTILLERY_DEVICE` and the logging ones.

Made by `python docs/make_settings.py` from `storage/settings.py`, which a test holds this page equal to.

| setting | variable | default | allowed | meaning |
| --- | --- | --- | --- | --- |
"""
SIGNS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    return f"| `{name}` | `DISTILLERY_{name.upper()}` | {_default(field)} | {_allowed(field)} | {meaning} |\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Path):
        return f"`{value}`"
    return f"`{json.dumps(value) if isinstance(value, (bool, dict)) else value}`"


def _allowed(field: FieldInfo) -> str:
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    if choices:
        return ", ".join(f"`{value}`" for value in choices)
    found: dict[str, Any] = {sign: _bound(field, sign) for sign, _ in SIGNS}
    bounds = [f"{shown} {found[sign]:,}" for sign, shown in SIGNS if found[sign] is not None]
    patterns = [pattern for pattern in (getattr(item, "pattern", None) for item in field.metadata) if pattern]
    return ", ".join([*bounds, *(f"`{pattern}`" for pattern in patterns)])


def _bound(field: FieldInfo, sign: str) -> float | None:
    return next((getattr(item, sign) for item in field.metadata if hasattr(item, sign)), None)


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page(), encoding="utf-8")
