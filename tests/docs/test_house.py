"""Who may import whom, as import-linter cannot see it: when."""

import subprocess
import sys
from pathlib import Path

HOUSE = ("api", "kdcore", "migrations", "storage", "worker")
HEAVY = ("torch", "numpy", "sqlalchemy", "celery", "fastapi", "pydantic", "yaml")

PROGRAM = """
import importlib, pkgutil, sys
import distillery
for module in pkgutil.walk_packages(distillery.__path__, "distillery."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_importing_the_client_loads_neither_the_house_nor_anything_heavy(root: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert "httpx" in loaded
    assert sorted(set(loaded) & {*HOUSE, *HEAVY}) == []
