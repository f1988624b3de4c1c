"""The roles' contracts: argument specs, defaults, and what Python hands over are one and the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.catalog import load_catalog
from provision.engines.ollama_role import OllamaOptions, role_vars
from provision.resources import data_dir
from tests.integration.applying import small_plan

PLAYBOOKS = data_dir("playbooks")
ROLES = sorted(path.name for path in (PLAYBOOKS / "roles").iterdir())
MODULES = sorted([*(PLAYBOOKS / "library").glob("*.py"), *(PLAYBOOKS / "module_utils").glob("*.py")])


def specs(role: str) -> dict[str, Any]:
    document = yaml.safe_load((PLAYBOOKS / "roles" / role / "meta" / "argument_specs.yml").read_text())
    options: dict[str, Any] = document["argument_specs"]["main"]["options"]
    return options


@pytest.mark.parametrize("role", ROLES)
def test_argument_spec_is_the_defaults(role: str) -> None:
    defaults = yaml.safe_load((PLAYBOOKS / "roles" / role / "defaults" / "main.yml").read_text())
    assert {name: option.get("default") for name, option in specs(role).items()} == defaults
    assert all(option["description"] for option in specs(role).values())


def test_role_vars_are_exactly_the_options_of_the_roles() -> None:
    options = {name: option for role in ROLES for name, option in specs(role).items()}
    variables = role_vars(small_plan(), OllamaOptions(version="0.32.15"))
    assert variables.keys() == options.keys()
    kinds = {"str": str, "path": str, "int": int, "dict": dict, "list": list, "bool": bool}
    for name, value in variables.items():
        assert type(value) is kinds[options[name]["type"]], name
    (model,) = variables["models_wanted"]  # type: ignore[misc]
    assert model.keys() == options["models_wanted"]["options"].keys()


def test_defaults_of_python_and_of_the_roles_agree() -> None:
    options, role = OllamaOptions(version="0.32.15"), specs("ollama")
    assert role["ollama_version"]["default"] == load_catalog().engine("ollama").version
    assert role["ollama_mirror"]["default"] == options.mirror
    assert role["ollama_models_path"]["default"] == options.models_path


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_modules_run_on_the_oldest_python_of_a_host(module: Path) -> None:
    """Ansible's floor on the host is Python 3.9; the standard library and Ansible's own utilities are all there is."""
    tree = ast.parse(module.read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names) | {"ansible"}


def test_task_names_are_sentences_and_modules_are_named_in_full() -> None:
    own = {path.stem for path in (PLAYBOOKS / "library").glob("*.py")}
    for path in (PLAYBOOKS / "roles").glob("*/tasks/main.yml"):
        for task in yaml.safe_load(path.read_text()):
            assert re.match(r"[A-Z][a-z]+,? \w", task["name"]), task["name"]
            actions = [key for key in task if key.startswith("ansible.builtin.") or key in own]
            assert len(actions) == 1, task


@pytest.mark.parametrize("playbook", ["site", "verify", "remove"])
def test_playbooks_parse(playbook: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--syntax-check", "-i", "host,", f"{playbook}.yml"],
        cwd=PLAYBOOKS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ansible_lint_production_profile() -> None:
    scripts = Path(sys.executable).parent
    if not (scripts / "ansible-lint").exists():
        pytest.skip("ansible-lint is not installed")
    done = subprocess.run(
        [scripts / "ansible-lint", "--offline", "--nocolor", "--profile", "production", "."],
        cwd=PLAYBOOKS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
