"""The documentation names files, modules, options and headings that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "demo/README.md", *(ROOT / "docs").glob("*.md")])
PACKAGES = ("engine", "streaming", "precompute", "training", "benchmarks")
FOLDERS = "|".join((*PACKAGES, "tests", "tools", "examples", "demo", "docs"))
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(rf"(?<![\w./~])((?:{FOLDERS})(?:/[\w.-]+)+\.(?:py|md|js|html|sh|cu|csv|wav|mp4|safetensors))\b")
FILE = re.compile(r"(?<![\w./-])([\w-]+\.(?:py|cu))\b")
MODULE = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
PROGRAM = re.compile(r"^```python\n.*?^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(
    r"(?:personastream (?:serve|cluster|dub|bench|mic|export|doctor)|\bprecompute [\w-]"
    r"|python -m (?:training|benchmarks))"
)
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
NOT_OF_OURS = {"help", "persona-accent", "persona-accent-ink"}  # tyro's, and properties of a style sheet


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")}


@cache
def source_files() -> dict[str, list[Path]]:
    """Paths of our source files by file name."""
    files: dict[str, list[Path]] = {}
    for folder in FOLDERS.split("|"):
        for path in (ROOT / folder).rglob("*"):
            files.setdefault(path.name, []).append(path)
    return files


@cache
def option_names() -> frozenset[str]:
    """Names that a command line can be made from: fields, arguments of functions, and tyro's `arg(name=…)`."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
                elif isinstance(node, ast.arg):
                    names.add(node.arg)
                elif isinstance(node, ast.keyword) and node.arg == "name" and isinstance(node.value, ast.Constant):
                    names.add(str(node.value.value))
    return frozenset(names)


def module_exists(name: str) -> bool:
    """True for a module or package, a name in the text of a module, and a public name of a package."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, package = path.parent.with_suffix(".py"), path.parent / "__init__.py"
    if module.is_file():
        return re.search(rf"\b{path.name}\b", module.read_text()) is not None
    return package.is_file() and f'"{path.name}"' in package.read_text()


def options(text: str) -> Iterator[str]:
    """Options of our commands: alone in code marks, or in the line of a command."""
    for code in re.findall(r"`(--[^`]*)`", text):
        yield from OPTION.findall(code)
    for line in text.splitlines():
        if COMMAND.search(line) and "pip install" not in line:
            yield from OPTION.findall(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path):
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name_of(page)} links to {place}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path):
    text = page.read_text()
    for path in PATH.findall(text):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}"
    for file in FILE.findall(text):
        assert file in source_files(), f"{name_of(page)} names {file}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_are_named_exist(page: Path):
    text = page.read_text()
    prose = PROGRAM.sub("", text)  # in a program `engine` may be a variable
    imports = re.findall(r"^ *from (\S+) import ([\w, ]+)", text, re.MULTILINE)
    imported = [f"{module}.{name.strip()}" for module, names in imports for name in names.split(",")]
    for module in MODULE.findall(" ".join([prose, *imported])):
        assert module_exists(module), f"{name_of(page)} names {module}"


@pytest.mark.parametrize("package", ["engine", "streaming", "precompute", "training"])
def test_the_map_of_the_architecture_shows_every_file_and_no_other(package: str):
    page = (ROOT / "docs/architecture.md").read_text()
    block = re.search(rf"^    {package}/.*\n(?:      .*\n)+", page, re.MULTILINE)
    assert block is not None, f"docs/architecture.md has no tree of {package}"
    shown = {line.split()[0].rstrip("/") for line in block.group().splitlines()[1:]}
    sources = {path.stem for path in (ROOT / package).rglob("*.py") if not path.stem.startswith("__")}
    others = {path.name for path in (ROOT / package).rglob("*")}
    missing, unknown = sources - shown, shown - sources - others
    assert not missing, f"docs/architecture.md does not show {missing} of {package}"
    assert not unknown, f"docs/architecture.md shows {unknown}, which {package} does not have"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_are_named_exist(page: Path):
    for option in set(options(page.read_text())) - NOT_OF_OURS:
        field = option.split(".")[-1].replace("-", "_")
        assert field in option_names(), f"{name_of(page)} names --{option}"
