"""The code in the pages is code."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

SHELLS = ("bash", "sh", "console", "shell")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block; blocks indented in a list are outdented."""
    found = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in found]


@pytest.fixture(scope="session")
def all_blocks(pages: list[Path]) -> list[tuple[str, str, str]]:
    return [(page.name, language, text) for page in pages for language, text in blocks(page)]


def test_shell_blocks_parse(all_blocks: list[tuple[str, str, str]]) -> None:
    for page, language, text in all_blocks:
        if language in SHELLS:
            checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=30)
            assert checked.returncode == 0, f"{page}: {checked.stderr}\n{text}"


def test_python_blocks_compile(all_blocks: list[tuple[str, str, str]]) -> None:
    for page, language, text in all_blocks:
        if language in ("python", "py"):
            compile(text, page, "exec")


def test_yaml_blocks_parse(all_blocks: list[tuple[str, str, str]]) -> None:
    for page, language, text in all_blocks:
        if language in ("yaml", "yml"):
            assert yaml.safe_load(text) is not None, page
