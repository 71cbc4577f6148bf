"""The sources contain no calls that could run code from downloaded files."""

import ast

from conftest import ROOT


def calls():
    for path in [
        *ROOT.glob("msctr_hf/**/*.py"),
        *ROOT.glob("scripts/*.py"),
        *ROOT.glob("experiments/**/*.py"),
        ROOT / "msctr_cli.py",
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                yield path.name, name, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_pickles_are_loaded_as_weights_only():
    found = [(path, given.get("weights_only")) for path, name, given in calls() if name == "torch.load"]
    assert found
    assert all(weights_only == "True" for _, weights_only in found), found


def test_yaml_and_pickle_are_loaded_safely_and_remote_code_is_never_trusted():
    for path, name, given in calls():
        assert name not in {"yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "eval", "exec"}, path
        assert "trust_remote_code" not in given, path
