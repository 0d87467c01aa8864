"""The workflows of .github: what they call is there, what they may do is little, and they end."""

import re
import tomllib
from itertools import product

import pytest
import yaml
from test_architecture import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXPERIMENTS = {path.stem for path in (ROOT / "experiments").glob("*.yaml")}


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(job):
    """Every line that a job runs, once for each entry of its matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    included = matrix.pop("include", [{}])
    for entry, *values in product(included, *matrix.values()):
        chosen = {**entry, **dict(zip(matrix, values, strict=True))}
        for step in job["steps"]:
            text = step.get("run", "")
            for key, value in chosen.items():
                text = text.replace(f"${{{{ matrix.{key} }}}}", str(value))
            yield from text.splitlines()


def problems_of(workflow):
    """What is wrong with a workflow, in words."""
    if workflow.get("permissions") != {"contents": "read"}:
        yield "may do more than read the repository, or does not say what it may"
    if not {*workflow.get(True, {})} & {"push", "pull_request", "schedule"}:  # YAML reads `on` as true
        yield "nothing starts it"
    for name, job in workflow["jobs"].items():
        if "permissions" in job:
            yield f"{name} has permissions of its own"
        if not 0 < job.get("timeout-minutes", 0) < 360:
            yield f"{name} does not end by itself before the host ends it"
        if not {*[job.get("needs")]} <= {None, *workflow["jobs"]}:
            yield f"{name} waits for a job that is not there"
        for step in job["steps"]:
            if "uses" in step and not re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]):
                yield f"{name} uses {step['uses']}, which is not pinned to a major version"
            if ("uses" in step) == ("run" in step):
                yield f"{name} has a step that neither uses nor runs, or both"
        for line in commands(job):
            yield from (f"{name}: {problem}" for problem in problems_of_line(line))


def problems_of_line(line):
    for target in re.findall(r"(?:^|&& *|; *)make ([\w-]+)", line.strip()):
        if target not in targets():
            yield f"there is no make {target}"
    for experiment in re.findall(r"--config ([\w/.]+)", line):
        if experiment not in EXPERIMENTS and not (ROOT / experiment).is_file():
            yield f"there is no experiment {experiment}"
    for file in re.findall(r"\b(?:tests|examples|docs)/[\w./-]+", line):
        if not (ROOT / file).exists():
            yield f"there is no {file}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_is_there_may_only_read_and_ends(path):
    assert [*problems_of(yaml.safe_load(path.read_text(encoding="utf-8")))] == []


def sound():
    step = {"uses": "actions/checkout@v4"}
    job = {"timeout-minutes": 9, "steps": [step, {"run": "make test"}]}
    return {"permissions": {"contents": "read"}, True: {"push": {}}, "jobs": {"test": job}}


PLANTED = {
    "a target that is not there": ("steps", [{"run": "make tset"}]),
    "a target of a matrix": ("steps", [{"run": "make ${{ matrix.target }}"}]),
    "a second command": ("steps", [{"run": "cd docs && make nothing"}]),
    "an experiment": ("steps", [{"run": "genlab fit --config dcgan_digts"}]),
    "a file of tests": ("steps", [{"run": "pytest tests/test_nothing.py"}]),
    "a branch in place of a version": ("steps", [{"uses": "actions/checkout@main"}]),
    "a step of nothing": ("steps", [{"name": "nothing"}]),
    "no end": ("timeout-minutes", 0),
    "rights of its own": ("permissions", {"contents": "write"}),
    "an unknown job before it": ("needs", "nothing"),
}


@pytest.mark.parametrize(("key", "value"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_fault_of_a_workflow_is_found(key, value):
    workflow = sound()
    assert [*problems_of(workflow)] == []
    workflow["jobs"]["test"] |= {"strategy": {"matrix": {"target": ["test", "nothing"]}}, key: value}
    assert [*problems_of(workflow)]


@pytest.mark.parametrize("rights", [None, {"contents": "write"}, "write-all"])
def test_a_workflow_that_may_write_is_found(rights):
    assert [*problems_of({**sound(), "permissions": rights})]


def test_the_oldest_torch_that_is_tried_is_the_oldest_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    oldest = ci["jobs"]["test"]["strategy"]["matrix"]["include"][0]
    for package in ("torch", "torchvision"):
        least = next(line for line in project["dependencies"] if line.startswith(f"{package}>="))
        assert f"{package}=={least.partition('>=')[2]}.*" in oldest["constraints"].split()
    assert project["requires-python"] == f">={oldest['python']}"
