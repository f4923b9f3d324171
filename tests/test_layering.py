"""Data flows one way: the rooms import each other in the order that README draws."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ldm_scaling"

# A room may import the rooms named beside it, itself, and nothing else of the package.
GROUND = {"types", "records", "naming", "launching", "placement", "hosts"}
MODELS = {"unet", "encoders"}
CORE = MODELS | {"diffusion", "sharding", "data", "metrics", "aot"}  # blind to each other
MAY_IMPORT = {
    **{room: set() for room in GROUND},
    "launching": {"hosts"},
    **{room: GROUND for room in CORE},
    "checkpoint": GROUND | MODELS,
    "tasks": GROUND | CORE | {"checkpoint"},
    "analysis": GROUND | {"unet"},
    "train": GROUND | CORE | {"checkpoint", "tasks"},
    "evaluation": GROUND | CORE | {"checkpoint"},
    "pipeline": GROUND | CORE | {"checkpoint", "evaluation"},
    "__init__": {"pipeline"},
}


def imported_modules(path: Path) -> set[str]:
    """Dotted names of every import in a file, wherever it stands (also inside functions)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_modules(path))
    return {p[1] for p in parts if p[0] == "ldm_scaling" and len(p) > 1 and p[1] != "__version__"}


def test_rooms_import_only_downwards():
    broken = [
        f"{path.relative_to(ROOT)} imports {room}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for room in sorted(rooms_imported(path) - MAY_IMPORT[room_of(path)] - {room_of(path)})
    ]
    assert not broken, "\n".join(broken)


def test_order_has_no_circle():
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        ready = {r for r, below in MAY_IMPORT.items() if r not in done and below <= done}
        assert ready, f"circle among {set(MAY_IMPORT) - done}"
        done |= ready


def test_modules_have_no_circle():
    """No modules import each other in a circle, not even inside one room or inside functions."""
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in PACKAGE.rglob("*.py")
    }

    def targets(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
        return found & set(modules)

    graph = {
        name: targets(path) - {name}
        for name, path in modules.items()
        if path.name != "__init__.py"  # a room's face imports what is inside it
    }
    while graph:
        leaves = {name for name, below in graph.items() if not below & set(graph)}
        assert leaves, f"circle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


def test_every_room_says_what_it_is_for():
    for init in sorted(PACKAGE.glob("*/__init__.py")):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def test_long_files_give_a_reason():
    for path in sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("launch/*.py")]):
        text = path.read_text()
        if len(text.splitlines()) > 300:
            doc = ast.get_docstring(ast.parse(text)) or ""
            assert "long because" in doc, f"{path}: over 300 lines; say 'long because ...'"


def test_launchers_are_thin():
    for path in sorted((ROOT / "launch").glob("*.py")):
        assert len(path.read_text().splitlines()) <= 120, f"{path}: logic belongs in the package"
