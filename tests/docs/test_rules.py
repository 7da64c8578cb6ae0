"""Rules of the code that a machine can hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST_SOURCE, LONGEST_TEST = 300, 500
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}
HARMLESS = {"pickle.UnpicklingError"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_TORCH = {"torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "torch.export.load"}
UNSAFE_YAML = {"yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader", "yaml.Loader"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def has_safe_loader(call: ast.Call, tree: ast.AST) -> bool:
    """Whether a `yaml.load` names a loader that this very file derives from SafeLoader."""
    derived = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(dotted(base) == "yaml.SafeLoader" for base in node.bases)
    }
    return any(keyword.arg == "Loader" and dotted(keyword.value) in derived for keyword in call.keywords)


def is_unsafe(name: str) -> bool:
    """Whether a name is one whose calls this test looks at; imported alone, it would be called without its module."""
    return name in UNSAFE_YAML | UNSAFE_TORCH | {"torch.load", "yaml.load", "numpy.load"}


def faults(tree: ast.AST) -> Iterator[str]:
    """What a file does that could execute what a user uploads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name.split(".")[0] in UNSAFE_MODULES and name not in HARMLESS:
                yield f"line {node.lineno}: {name}"
            if name in UNSAFE_YAML | UNSAFE_TORCH or name == "torch.serialization.add_safe_globals":
                yield f"line {node.lineno}: {name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            yield f"line {node.lineno}: from {node.module} import …"
        elif isinstance(node, ast.ImportFrom) and any(is_unsafe(f"{node.module}.{a.name}") for a in node.names):
            yield f"line {node.lineno}: from {node.module} import … hides it from this test"
        elif isinstance(node, ast.Import):
            renamed = [a.name for a in node.names if a.asname and a.name in UNSAFE_MODULES | {"yaml", "torch"}]
            yield from (f"line {node.lineno}: import {name} under another name hides it from this test"
                        for name in renamed)  # fmt: skip
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in UNSAFE_NAMES:
                yield f"line {node.lineno}: {name}()"
            if name == "torch.load" and not is_true(node, "weights_only"):
                yield f"line {node.lineno}: torch.load without weights_only=True"
            if name == "yaml.load" and not has_safe_loader(node, tree):
                yield f"line {node.lineno}: yaml.load without a loader derived from yaml.SafeLoader"
            if name.split(".")[-1] == "load" and is_true(node, "allow_pickle"):
                yield f"line {node.lineno}: numpy.load(allow_pickle=True)"
            if is_true(node, "shell"):
                yield f"line {node.lineno}: shell=True"


def test_nothing_executes_what_a_user_uploads(source_files: list[Path]) -> None:
    assert len(source_files) > 40
    found = [f"{path}: {fault}" for path in source_files for fault in faults(ast.parse(path.read_text()))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle\npickle.load(f)",
        "from pickle import loads",
        "import pickle as p",
        "import marshal\nmarshal.loads(b'')",
        "eval('1')",
        "exec(code)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.hub.load(repository, name)",
        "import torch\ntorch.export.load(path)",
        "from torch import load\nload(path)",
        "from yaml import load",
        "from torch.jit import load",
        "import yaml\nyaml.load(text)",
        "import yaml\nclass L(yaml.Loader): ...\nyaml.load(text, Loader=L)",
        "import yaml\nyaml.unsafe_load(text)",
        "import subprocess\nsubprocess.run(line, shell=True)",
    ],
)
def test_the_rule_finds_it(code: str) -> None:
    assert list(faults(ast.parse(code)))


def test_the_rule_lets_safe_code_pass() -> None:
    safe = (
        "import pickle, torch\ntry:\n torch.load(p, weights_only=True)\nexcept pickle.UnpicklingError: pass\nm.eval()"
    )
    assert list(faults(ast.parse(safe))) == []


def test_no_file_is_long(project_files: list[Path], source_files: list[Path]) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in project_files if path.suffix == ".py"}
    limits = {path: LONGEST_SOURCE if path in source_files else LONGEST_TEST for path in lengths}
    assert {str(path): length for path, length in lengths.items() if length > limits[path]} == {}


def test_nothing_is_left_for_later(project_files: list[Path]) -> None:
    words = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".gpu", ""}
    texts = [path for path in project_files if path.suffix in kinds and path.name != "LICENSE"]
    found = [
        f"{path}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []


def test_there_is_no_drawer_for_odds_and_ends(source_files: list[Path]) -> None:
    names = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [path for path in source_files if path.name in names] == []
