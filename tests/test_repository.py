"""The repository keeps what it says: pinned dependencies, README's commands, the order of every script."""

import re
import tomllib

from conftest import ROOT

SCRIPTS = sorted(ROOT.glob("*_multi_task_learning.py"))
README = (ROOT / "README.md").read_text()


def test_inline_metadata_equals_requirements():
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == ["tensorflow", "numpy", "tensorboard"]
    for script in SCRIPTS:
        block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)[1]
        metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
        assert metadata["dependencies"] == requirements


def test_development_requirements_are_pinned():
    lines = (ROOT / "requirements-dev.txt").read_text().split("\n")
    assert lines[0] == "-r requirements.txt"
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines[1:] if line)


def test_sections_stand_in_one_order():
    order = ["data", "cross-stitch unit", "network", "losses and metrics", "training"]
    order += ["checkpoints and summaries", "command line"]
    for script in SCRIPTS:
        assert re.findall(r"^# -{20,} (.+)$", script.read_text(), re.MULTILINE) == order


def test_readme_names_every_argument(script):
    with_dashes = set(re.findall(r"`(--\w+)`", README))
    parser_flags = set(re.findall(r'add\("(--\w+)"', (ROOT / f"{script.NAME}.py").read_text()))
    assert parser_flags <= with_dashes, parser_flags - with_dashes


def test_readme_links_to_what_is_there():
    for path in re.findall(r"\]\((?!https?:|#)([^)]+)\)|src=\"([^\"]+)\"", README):
        path = "".join(path)
        assert (ROOT / path).exists(), path


def test_ci_runs_the_readme_test_command():
    assert "-m pytest\n" in README and "-m pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
