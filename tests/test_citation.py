"""CITATION.cff is valid, so that tools for citing software can read it."""

import json
import tomllib

import pytest
import yaml
from conftest import ROOT

SCHEMA = ROOT / "tests/citation_file_format/schema_1.2.0.json"


@pytest.fixture
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def schema_errors(citation):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    return [error.message for error in validator.iter_errors(citation)]


def test_the_citation_is_valid_against_the_schema_of_the_citation_file_format(citation):
    assert schema_errors(citation) == []


@pytest.mark.parametrize(("change", "complaint"), [
    ({"authors": None}, "'authors' is a required property"), ({"authors": [{"surname": "Pissas"}]}, "not valid"),
    ({"authors": []}, "non-empty"), ({"repository": 7}, "not of type 'string'"), ({"licence": "MIT"}, "unexpected"),
])  # fmt: skip
def test_the_schema_refuses_a_citation_that_is_not_valid(citation, change, complaint):
    changed = {name: value for name, value in {**citation, **change}.items() if value is not None}
    assert any(complaint in message for message in schema_errors(changed)), schema_errors(changed)


def test_authors_are_the_contributors_and_the_paper_is_what_to_cite(citation):
    assert citation["authors"] == [{"name": "msctr_hf contributors"}]
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Pissas"
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_no_value_is_a_placeholder(citation):
    assert "example.org" not in json.dumps(citation)
