"""What can be checked of Dockerfile.gpu where no container engine is at hand."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest


class Instruction(NamedTuple):
    stage: int
    name: str
    value: str


@pytest.fixture
def instructions(root: Path) -> list[Instruction]:
    """The Dockerfile's instructions, continued lines joined, with the number of their stage."""
    lines = [line for line in (root / "Dockerfile.gpu").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], -1
    for line in filter(None, text.splitlines()):
        name, value = line.split(maxsplit=1)
        stage += name == "FROM"
        found.append(Instruction(stage, name, value))
    return found


def values(instructions: list[Instruction], name: str, stage: int | None = None) -> list[str]:
    return [i.value for i in instructions if i.name == name and stage in (None, i.stage)]


def test_there_are_only_known_instructions(instructions: list[Instruction]) -> None:
    known = {"FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {i.name for i in instructions} <= known


def test_the_base_is_one_pinned_version(instructions: list[Instruction]) -> None:
    bases = {value.split()[0] for value in values(instructions, "FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", bases.pop())


def test_everything_copied_exists_and_reaches_the_build(instructions: list[Instruction], root: Path) -> None:
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for value in values(instructions, "COPY") for source in value.split()[:-1]}
    assert copied == allowed
    for source in copied:
        assert (root / source).exists(), source


def test_every_package_of_the_wheel_is_in_the_image(instructions: list[Instruction], root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages <= {source for value in values(instructions, "COPY") for source in value.split()[:-1]}


def test_packages_come_before_code(instructions: list[Instruction]) -> None:
    last = max(i.stage for i in instructions)
    runs = values(instructions, "RUN", last)
    with_packages = [n for n, run in enumerate(runs) if "/wheels" in run]
    with_code = [n for n, run in enumerate(runs) if "/built" in run]
    assert max(with_packages) < min(with_code) == len(runs) - 1


def test_every_package_is_checked_against_the_lock(instructions: list[Instruction]) -> None:
    runs = [run for run in values(instructions, "RUN") if re.search(r"\bpip (install|download|wheel)\b", run)]
    fetching = [run for run in runs if "--no-index" not in run]
    assert len(fetching) == 1
    assert "--require-hashes" in fetching[0]
    assert "--only-binary=:all:" in fetching[0]


def test_the_list_of_dependencies_is_the_projects(instructions: list[Instruction], root: Path) -> None:
    [run] = [run for run in values(instructions, "RUN") if "/dependencies.txt" in run and "tomllib" in run]
    python, flag, program, arrow, _ = shlex.split(run)
    assert (python, flag, arrow) == ("python", "-c", ">")
    printed = subprocess.run(
        [sys.executable, flag, program], cwd=root, timeout=30, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert printed == [*project["dependencies"], *extras["server"], *extras["train"]]
    locked = re.findall(r"^([a-z0-9.-]+)(?:\[.*\])?==", (root / "requirements.lock").read_text(), flags=re.MULTILINE)
    for requirement in printed:
        name = re.match(r"[A-Za-z0-9.-]+", requirement)
        assert name is not None
        assert name[0].lower() in locked


def test_it_does_not_run_as_root(instructions: list[Instruction], root: Path) -> None:
    last = max(i.stage for i in instructions)
    [user] = values(instructions, "USER", last)
    uid, gid = user.split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    [setup] = [run for run in values(instructions, "RUN", last) if "useradd" in run]
    assert f"--uid {uid}" in setup
    assert f"--owner={uid} --group={gid}" in setup
    assert [i.name for i in instructions[instructions.index(Instruction(last, "USER", user)) :]].count("RUN") == 0
    assert uid in (root / "deploy.env.example").read_text()


def test_the_entry_point_is_the_installed_command(instructions: list[Instruction], root: Path) -> None:
    [entry] = values(instructions, "ENTRYPOINT")
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry in {f'["{name}"]' for name in scripts}


def test_the_lock_has_hashes_and_no_addresses(root: Path) -> None:
    text = (root / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=[a-z])", text)
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+(\[[a-z0-9,-]+\])?==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
