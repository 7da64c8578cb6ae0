"""Packages of an operator that add models, losses and data: installed beside the project, and refused by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdcore.data import DATA, BaseDataConfig
from kdcore.losses import LOSSES, BaseLossConfig
from kdcore.models import MODELS, BaseModelConfig
from kdcore.plugins import PluginError, with_plugins

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "fixtures" / "plugin"
PAGE = (ROOT / "docs" / "guides" / "plugin.md").read_text()
BRIGHT = """
from typing import Literal
from kdcore.data.digits import DigitsConfig

class BrightConfig(DigitsConfig):
    \"\"\"The digits under another name.\"\"\"

    type: Literal["bright"] = "bright"
"""


def install(folder: Path, name: str, entries: dict[str, str], **modules: str) -> None:
    """What an installer leaves of a package: its modules, and the names of its entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[distillery.plugins]", *lines, ""]))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )


def test_a_package_installed_beside_the_project_adds_a_model_a_loss_and_data(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    installed = python(tmp_path, *pip, "--target", site, PACKAGE)
    assert installed.returncode == 0, installed.stderr
    install(site, "bright", {"data.bright": "bright_plugin:BrightConfig"}, bright_plugin=BRIGHT)
    spec = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0].replace("digits", "bright, train_samples: 200")
    (tmp_path / "job.yaml").write_text(spec)
    done = python(site, "-m", "kdcore", tmp_path / "job.yaml", "--out", tmp_path / "out", "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    model = json.loads((tmp_path / "out" / "model.json").read_text())
    assert model["architecture"] == {"type": "maxout", "classes": 10, "units": 8, "pieces": 3}
    assert model["provenance"]["stages"][0]["losses"][1]["type"] == "huber"
    assert model["provenance"]["data"]["type"] == "bright"


def test_a_package_that_adds_what_is_there_stops_the_start_and_is_named(tmp_path: Path) -> None:
    install(tmp_path, "twice", {"data.digits": "twice:Config"})
    said = python(tmp_path, "-c", "import kdcore.spec")
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("kdcore.plugins.PluginError: the package twice 1.0 has")


@pytest.mark.parametrize(
    ("entry", "value", "text", "message"),
    [
        ("model.mlp", "wrong_plugin:A", "", "there is a model of the type mlp already: kdcore's MLPConfig"),
        ("loss.kd", "wrong_plugin:A", "", "there is a loss of the type kd already: kdcore's KDConfig"),
        ("tiny", "wrong_plugin:A", "", "a dot and a type"),
        ("model.Tiny", "wrong_plugin:A", "", "a dot and a type"),
        ("model.tiny", "absent_plugin:A", "", "cannot be imported: ModuleNotFoundError"),
        ("model.tiny", "wrong_plugin:A", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("model.tiny", "wrong_plugin:A", "", "cannot be imported: AttributeError"),
        ("model.tiny", "wrong_plugin:A", "A = 3", "must be a subclass of kdcore.models.base.BaseModelConfig"),
        ("model.tiny", "wrong_plugin:A", "from kdcore.losses import KDConfig as A", "must be a subclass of"),
        ("model.tiny", "wrong_plugin:A", "from kdcore.models import MLPConfig as A", 'its `type` must be `Literal["ti'),
        ("model.tiny", "wrong_plugin:A", "from kdcore.models import BaseModelConfig as A", "its `type` must be"),
        ("model.tiny", "wrong_plugin:A", "from typing import Literal\nfrom kdcore.models import BaseModelConfig\n"
         "class A(BaseModelConfig):\n    type: Literal['tiny'] = 'tiny'\n", "lacks title, source, __doc__"),
    ],
)  # fmt: skip
def test_what_a_package_may_not_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, value: str, text: str, message: str
) -> None:
    install(tmp_path, "wrong", {entry: value}, wrong_plugin=text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_plugin", raising=False)
    lists: dict[str, Any] = {"model": (BaseModelConfig, MODELS), "loss": (BaseLossConfig, LOSSES)}
    kind = "loss" if entry.startswith("loss") else "model"
    with pytest.raises(PluginError, match=rf"the package wrong 1\.0 has the entry point {re.escape(entry)} = ") as said:
        with_plugins(kind, *lists[kind])  # type: ignore[arg-type]
    assert message in str(said.value)


def test_two_packages_with_one_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        install(tmp_path, name, {"data.bright": f"{name}_plugin:BrightConfig"}, **{f"{name}_plugin": BRIGHT})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"the package other 1\.0 .* already: that of the package one 1\.0"):
        with_plugins("data", BaseDataConfig, DATA)


def test_the_page_shows_the_package_that_is_installed_here() -> None:
    files = [PACKAGE / "pyproject.toml", *(PACKAGE / "maxout_plugin" / name for name in ("model.py", "loss.py"))]
    for path in files:
        assert path.read_text() in re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL), path.name
