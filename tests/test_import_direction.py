"""A folder of the package imports only the folders before it in a fixed order."""

import ast
from pathlib import Path

import msctr_hf

PACKAGE = Path(msctr_hf.__file__).parent
LADDER = (
    *("errors", "settings", "progress", "folder_lock", "new_folder"),
    *("models", "data", "importing", "evaluation", "training", "hub", "commands"),
)
MAY_IMPORT = {
    "models": {"models"},
    "data": {"errors", "settings", "progress", "folder_lock", "new_folder", "data"},
    "importing": {"errors", "settings", "progress", "folder_lock", "new_folder", "data", "importing"},
    **{folder: set(LADDER[: LADDER.index(folder) + 1]) for folder in ("evaluation", "training", "hub", "commands")},
}


def relative_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("msctr_hf"), f"{path}: absolute import of the package"
            if node.level:
                yield node


def test_folders_import_only_earlier_folders():
    for folder, allowed in MAY_IMPORT.items():
        for path in (PACKAGE / folder).glob("*.py"):
            for node in relative_imports(path):
                target = folder if node.level == 1 else node.module.split(".")[0]
                assert target in allowed, f"{path.name} imports {target}"


def test_models_import_only_siblings_so_that_the_folder_works_on_the_hub():
    for path in (PACKAGE / "models").glob("*.py"):
        for node in relative_imports(path):
            assert node.level == 1, path.name
            assert node.module, path.name
            assert "." not in node.module, path.name
