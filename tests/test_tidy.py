"""Style that a linter cannot see, as a test (after TigerBeetle's tidy.zig)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
HEAVY = {"torch", "diffusers", "starlette", "fastapi", "uvicorn", "aiohttp", "pydantic", "typer", "rich"}
SOURCES = sorted(p for d in ("falctl", "runners", "tools", "benchmarks") for p in (ROOT / d).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_and_no_function_is_too_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MODULE_LINES_MAX
    for node in _functions(ast.parse(text)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{node.name} is {lines} lines"


@pytest.mark.parametrize(("page", "lines_max"), [("ARCHITECTURE.md", 300), ("README.md", 200)])
def test_a_page_that_is_to_be_read_whole_stays_short(page: str, lines_max: int) -> None:
    assert (ROOT / page).read_text(encoding="utf-8").count("\n") <= lines_max


def test_the_map_of_the_code_fits_a_window() -> None:
    lines = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n")
    assert [line for line in lines if len(line) > 120] == []


def test_what_a_comment_or_a_docstring_names_is_there() -> None:
    named = {
        (path, name) for path in SOURCES for name in re.findall(r"`(falctl(?:\.\w+)+)", path.read_text())
    }
    missing = [
        (path, name) for path, name in named if name != "falctl.toml" and not _is_there(name.split("."))
    ]
    assert missing == []


def test_every_file_that_the_map_of_the_code_names_is_there() -> None:
    files = {str(path.relative_to(ROOT)) for path in SOURCES}
    names = re.findall(r"`([\w/]+\.py)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert [name for name in names if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []


@pytest.mark.process
def test_importing_what_authors_import_is_light() -> None:
    assert not HEAVY & _modules("import falctl")


@pytest.mark.process
def test_the_command_line_starts_without_torch_and_servers() -> None:
    heavy = HEAVY - {"typer", "rich"}
    assert not heavy & _modules("import falctl.cli.main")
    assert not heavy & _modules("import falctl.cli.status")


@pytest.mark.process
def test_the_supervisor_and_the_router_never_import_torch() -> None:
    assert not {"torch", "diffusers", "starlette", "uvicorn", "aiohttp"} & _modules(
        "import falctl.supervisor.up"
    )
    assert not {"torch", "diffusers", "fal"} & _modules("import falctl.router.process")


def test_only_the_layout_knows_the_bytes_of_the_board() -> None:
    for path in (ROOT / "falctl").rglob("*.py"):
        if path.name != "layout.py":
            assert not re.search(r"^\s*(import struct|from struct)", path.read_text(), re.MULTILINE), path


def _is_there(names: list[str]) -> bool:
    place = ROOT
    while names and (place / names[0]).is_dir():
        place /= names.pop(0)
    module = place / (
        f"{names.pop(0)}.py" if names and (place / f"{names[0]}.py").exists() else "__init__.py"
    )
    return all(re.search(rf"\b{name}\b", module.read_text()) for name in names)


def _modules(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
