"""docs/settings.md is what the settings are."""

import re
import runpy
from pathlib import Path

import pytest

from storage.settings import Settings

CLIENT = {"DISTILLERY_URL", "DISTILLERY_API_KEY"}
"""What the client reads, and the compose file's own: no settings of the service."""
COMPOSE = {"DISTILLERY_DATA_FOLDER", "DISTILLERY_PUBLISHED_PORT"}
TESTS = {"DISTILLERY_TEST_POSTGRES", "DISTILLERY_TEST_REDIS"}


def test_the_page_is_equal_to_the_settings(root: Path) -> None:
    page = runpy.run_path(str(root / "docs" / "make_settings.py"))["page"]()
    assert (root / "docs" / "settings.md").read_text() == page, "run `python docs/make_settings.py`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_means(name: str, root: Path) -> None:
    assert Settings.model_fields[name].description
    row = re.search(
        rf"^\| `{name}` \| `DISTILLERY_{name.upper()}` \|.*$", (root / "docs/settings.md").read_text(), re.M
    )
    assert row is not None
    assert row[0].count(" | ") == 4, "a `|` in a docstring breaks the table"


def test_every_variable_that_a_page_names_is_one(pages: list[Path]) -> None:
    known = {f"DISTILLERY_{name.upper()}" for name in Settings.model_fields} | CLIENT | COMPOSE | TESTS
    for page in pages:
        named = set(re.findall(r"\bDISTILLERY_[A-Z_]*[A-Z]\b", page.read_text()))
        assert named <= known, f"{page}: {sorted(named - known)}"
