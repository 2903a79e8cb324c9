"""The JSON Schema that editors check specs with: it is the one in jobs/, and as strict as the launcher."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.main import main
from launcher.errors import FINISHED, SpecError
from launcher.spec import JobSpec, TrainerArgs, json_schema, parse_spec

JOBS = Path(__file__).parents[2] / "jobs"
SECTIONS = [
    "Checkpoint",
    "ClassSpec",
    "Code",
    "Container",
    "Distribution",
    "Env",
    "Model",
    "Random",
    "Resources",
    "Retry",
    "Slurm",
    "Sweep",
    "Tpu",
    "TrainerArgs",
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def test_the_schema_of_the_jobs_folder_is_what_the_launcher_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == FINISHED

    printed = capsys.readouterr().out
    assert (JOBS / "schema.json").read_text() == printed, "run: launcher schema > jobs/schema.json"


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_job_names_the_schema_for_editors(job: Path) -> None:
    first = job.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)

    assert named
    assert (job.parent / named[1]).samefile(JOBS / "schema.json")


def test_it_is_one_of_json_schema_and_tells_which(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["type"] == "object"
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


def test_it_knows_every_section_and_what_must_be_there(schema: dict[str, Any]) -> None:
    assert sorted(schema["$defs"]) == SECTIONS
    assert list(schema["properties"]) == list(JobSpec.model_fields)
    assert schema["required"] == ["name", "model"]
    assert {name: section["required"] for name, section in schema["$defs"].items() if "required" in section} == {
        "ClassSpec": ["class_path"],
        "Container": ["image"],
        "Model": ["class_path"],
        "Random": ["n", "space"],
    }


def test_it_has_no_unknown_keys(schema: dict[str, Any]) -> None:
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False, section["title"]
        assert section["properties"]
    assert schema["$defs"]["Env"]["properties"]["vars"]["additionalProperties"] is False
    times = schema["$defs"]["TrainerArgs"]["properties"]["max_time"]["anyOf"]
    assert times[1]["propertyNames"]["enum"] == ["weeks", "days", "hours", "minutes", "seconds"]


def test_it_has_the_trainer_arguments_with_their_descriptions(schema: dict[str, Any]) -> None:
    arguments = schema["$defs"]["TrainerArgs"]["properties"]

    assert list(arguments) == list(TrainerArgs.model_fields)
    assert not arguments.keys() & TrainerArgs.elsewhere.keys()
    assert all(argument["description"] for argument in arguments.values())


def test_its_references_lead_somewhere(schema: dict[str, Any]) -> None:
    named = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)))

    assert named == set(SECTIONS)


@pytest.mark.parametrize(
    ("section", "field", "values"),
    [
        ("Resources", "time", ["30", "10:00", "90s", "1h30m", "1-12:00:00", "1:60:00", "24:00:00", "", "5x", "1m1h"]),
        ("Resources", "nodes", ["2-4", "12-100", "3-3", "2-", "-4", "02-4", "0-4", "4", "2 - 4", "2-4-6"]),
        ("Resources", "mem", ["16G", "16", "0", "00", "512M", "1.5G", "16GB"]),
        ("TrainerArgs", "max_time", ["01:12:00:00", "12:00:00", "1h"]),
    ],
)
def test_its_patterns_take_what_the_launcher_takes(
    schema: dict[str, Any], section: str, field: str, values: list[str]
) -> None:
    (pattern,) = re.findall(r'"pattern": ("[^"]*")', json.dumps(schema["$defs"][section]["properties"][field]))
    key = {"Resources": "resources", "TrainerArgs": "trainer"}[section]

    def taken(value: str) -> bool:
        try:
            text = f"name: x\nmodel: {{class_path: a.B}}\n{key}: {{{field}: '{value}'}}"
            parse_spec(text, source="job.yaml")
        except SpecError:
            return False
        return True

    assert {value: bool(re.search(json.loads(pattern), value)) for value in values} == {
        value: taken(value) for value in values
    }
    assert len({taken(value) for value in values}) == 2
