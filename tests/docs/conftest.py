"""What the documentation tests read."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("api", "distillery", "kdcore", "migrations", "storage", "worker")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project: what git tracks, or would; without git, what no cache or environment holds."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
        return sorted(path for path in (ROOT / name for name in names) if path.is_file())
    found = (path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@pytest.fixture(scope="session")
def source_files(project_files: list[Path]) -> list[Path]:
    """The Python files of the packages and of the scripts beside them, without the tests."""
    folders = {ROOT / name for name in (*PACKAGES, "benchmarks", "docs")}
    return [path for path in project_files if path.suffix == ".py" and folders & set(path.parents)]


@pytest.fixture(scope="session")
def pages(project_files: list[Path]) -> list[Path]:
    """The Markdown pages."""
    return [path for path in project_files if path.suffix == ".md"]
