"""The imports of the package have no cycles."""

import ast
from pathlib import Path

import msctr_hf

PACKAGE = Path(msctr_hf.__file__).parent
FOLDERS = ("models", "data", "evaluation", "training", "hub", "commands")


def modules():
    """Map the names of all modules to their files."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for folder in FOLDERS
        for path in (PACKAGE / folder).rglob("*.py")
    }


def imports(name, path, known):
    """List the modules that a file imports: at its top, within functions, and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            named = [".".join([*base, alias.name]) for alias in node.names]
            yield from {each for each in [".".join(base), *named] if each in known}


def cycles(graph):
    """List the modules that import themselves through others."""

    def reached(name):
        seen, waiting = set(), list(graph[name])
        while waiting:
            if (each := waiting.pop()) not in seen:
                seen.add(each)
                waiting += graph[each]
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_the_search_finds_cycles():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}
    assert "training.checkpointing" in graph["training.loop"]
    assert cycles(graph) == []
