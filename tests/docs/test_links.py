"""What the pages point at is there."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

FOLDERS = "api|benchmarks|distillery|docs|examples|kdcore|migrations|storage|tests|worker"


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_resolve(pages: list[Path]) -> None:
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            path = (page.parent / name) if name else page
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_files_that_are_named_exist(pages: list[Path], root: Path) -> None:
    """`storage/queue.py` in a page, or with a function behind it: `storage/lifecycle.py::move`."""
    missing = []
    for page in pages:
        named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)(?:::(\w+))?`", prose(page))
        for name, function in named:
            path = root / name
            if not path.exists() and not re.search(r"\.\.\.|…|\*", name):
                missing.append(f"{page.name}: {name}")
            elif function and not re.search(rf"^\s*(?:async )?(?:def|class) {function}\b", path.read_text(), re.M):
                missing.append(f"{page.name}: {name}::{function}")
    assert missing == []


def test_each_decision_says_why_and_what_holds_it(root: Path) -> None:
    decisions = [page for page in sorted((root / "docs/decisions").glob("*.md")) if page.name != "README.md"]
    assert len(decisions) >= 10
    index = (root / "docs/decisions/README.md").read_text()
    for page in decisions:
        headings = re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
        assert headings[:1] == ["Context"], page.name
        assert "Choice" in headings, page.name
        assert "What enforces it" in headings, page.name
        assert f"({page.name})" in index, f"{page.name} is not listed in docs/decisions/README.md"
        assert len(page.read_text().splitlines()) <= 80, f"{page.name}: a decision is one page"


def test_docstrings_refer_to_pages_that_exist(source_files: list[Path], root: Path) -> None:
    for path in source_files:
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
            assert (root / name).exists(), f"{path}: {name}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/api.md"])
def test_the_pages_a_newcomer_needs_are_there(name: str, root: Path) -> None:
    assert (root / name).exists()
