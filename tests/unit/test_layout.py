"""The layout itself: every module has its tests where one looks for them, and no file is too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests" / "unit"
PACKAGES = ("nexus", "backend_client", "cli")
LINES_MAX = 600  # the house style's: usual up to 250, ask at 400, stop here
EXCEPTIONS = {
    "backend_client/config_keys.py": "a table without code, read key by key in test_config.py",
}
EXCEPTIONS_MAX = 3


def modules() -> Iterator[Path]:
    """Give every module of the packages that holds code, relative to the root."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py" or has_code(path):
                yield path.relative_to(ROOT)


def has_code(path: Path) -> bool:
    """Tell whether a module does more than describe itself, import, and name what it exports."""
    return any(not is_declaration(node) for node in ast.parse(path.read_text()).body)


def is_declaration(node: ast.stmt) -> bool:
    """Tell whether a statement is a docstring, an import, or the assignment of a dunder name."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets)
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or isinstance(node, ast.Import | ast.ImportFrom)


def mirror(module: Path) -> Path:
    """Return the test file of a module: ``nexus/a/b.py`` has ``tests/unit/a/test_b.py``, the others keep their name."""
    folder = Path(*module.parts[1:-1]) if module.parts[0] == "nexus" else module.parent
    stem = "init" if module.name == "__init__.py" else module.stem
    return TESTS / folder / f"test_{stem}.py"


@pytest.mark.parametrize("module", [path for path in modules() if path.as_posix() not in EXCEPTIONS], ids=str)
def test_every_module_has_its_test_file(module: Path) -> None:
    """A reader who opens a module knows where its tests are."""
    assert mirror(module).is_file(), f"{module} has no {mirror(module).relative_to(ROOT)}"


def test_exceptions_are_few_and_needed() -> None:
    """An exception that is none any more must go."""
    assert len(EXCEPTIONS) <= EXCEPTIONS_MAX
    for name in EXCEPTIONS:
        assert Path(name) in set(modules())
        assert not mirror(Path(name)).exists()


def test_every_test_file_has_its_module() -> None:
    """A test of a module that was renamed or removed is found."""
    known = {mirror(module) for module in modules()}
    own = {Path(__file__), *TESTS.rglob("test_reference.py")}  # these look at documents, not at one module
    strays = set(TESTS.rglob("test_*.py")) - known - own
    assert not {stray.relative_to(ROOT).as_posix() for stray in strays if not continues(stray, known)}


def continues(test: Path, known: set[Path]) -> bool:
    """Tell whether a test file goes on where another one would be too long: ``test_b_more.py`` beside ``test_b.py``."""
    return any(test.parent == other.parent and test.stem.startswith(f"{other.stem}_") for other in known)


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_no_file_is_too_long(folder: str) -> None:
    """What does not fit in one head does not fit in one file."""
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > LINES_MAX}
