"""The client is light: what a user's script imports pulls in neither the server nor torch."""

import subprocess
import sys

import pytest

HEAVY = {"rich", "torch", "numpy", "pydantic", "fastapi", "sqlalchemy", "celery", "yaml", "storage", "kdcore", "api"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running `code`."""
    tell = f"{code}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import distillery",
        "import contextlib\nwith contextlib.suppress(SystemExit):\n import distillery.cli as c; c.main(['--help'])",
    ],
    ids=["import", "help"],
)
def test_the_package_and_its_help_load_the_standard_library_only(code: str) -> None:
    assert not loaded_by(code) & (HEAVY | {"httpx"})


def test_the_client_loads_httpx_and_nothing_heavy() -> None:
    found = loaded_by("import distillery; distillery.Client().close()")
    assert "httpx" in found
    assert not found & (HEAVY - {"rich"})  # httpx itself loads rich where its own command is installed


def test_every_public_name_is_there() -> None:
    import distillery

    for name in distillery.__all__:
        assert getattr(distillery, name).__name__ == name
    with pytest.raises(AttributeError, match="Clint"):
        _ = distillery.Clint


@pytest.mark.parametrize(
    ("command", "missing"), [("api", "fastapi"), ("worker", "torch"), ("migrate", "pydantic"), ("doctor", "celery")]
)
def test_a_server_command_without_its_extra_says_what_to_install(command: str, missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from distillery.cli import main; sys.exit(main([{command!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert missing in done.stderr
    assert "pip install 'distillery[server" in done.stderr
    assert "Traceback" not in done.stderr
