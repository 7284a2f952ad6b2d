"""The rooms of the package: imports point one way, without circles, and README's table names the tree."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "megatron_longrope2"
ROOMS = (
    "rope",
    "model",
    "data",
    "scoring",
    "search",
    "checkpoint",
    "training",
    "evaluation",
    "planning",
    "rehearsal",
    "launch",
)
MAY_IMPORT = {
    "rope": (),
    "model": ("rope",),
    "data": ("rope",),
    "scoring": ("rope", "model", "data"),
    "search": ("rope", "model", "data", "scoring"),
    "checkpoint": ("rope", "model", "scoring"),
    "training": ("rope", "model", "data"),
    "evaluation": ("rope", "model", "data", "scoring", "checkpoint"),
    "planning": ("rope", "model", "data", "checkpoint"),
    "rehearsal": (
        "model",
        "scoring",
        "search",
        "checkpoint",
        "training",
        "evaluation",
        "planning",
    ),
    "launch": ("rope", "data", "checkpoint", "rehearsal"),
}


def modules() -> dict[str, Path]:
    """Dotted names of the package's modules, and their files."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items() if ".tools" not in name}


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known.keys() or {node.module}
    return found & known.keys()


def room(module: str) -> str:
    """The folder of a module; the module's own name where it stands at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    known = modules()
    for module, file in known.items():
        if room(module) == name:
            rooms = {room(one) for one in imports(file, known)} & set(ROOMS) - {name}
            assert rooms <= set(MAY_IMPORT[name]), f"{module} imports {rooms - set(MAY_IMPORT[name])}"


def test_rooms_are_all_there_is() -> None:
    folders = {file.parent.name for file in (ROOT / PACKAGE).glob("*/__init__.py")} - {"tools"}
    assert folders == set(ROOMS)


def test_no_module_imports_itself_in_a_circle() -> None:
    known = modules()
    graph = {module: imports(file, known) - {module} for module, file in known.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for one in sorted(graph[module]):
                visit(one, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_readme_names_the_rooms_in_their_order() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(rf"^\| `{PACKAGE}/(\w+)/` \|", text, flags=re.MULTILINE)
    assert named == list(ROOMS)
