"""The package as a whole: quick to import, layered, self-contained, and as the README says."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from labkit.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted((ROOT / "labkit").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = sorted(
    path
    for pattern in ("labkit/**/*.py", "tests/**/*.py", "*.toml", "*.yml", "*.md", ".ci/*", "data/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
# The layers of CONTRIBUTING.md. A module may import from its own layer and from those below, at its top.
LAYERS = {
    0: ("errors", "files", "paths", "machine", "probe", "scale", "assets", "download", "pinned", "lessons"),
    1: ("models", "published", "tasks", "sentences", "instructions"),
    2: ("methods", "run", "training", "ledger", "energy", "baselines"),
    3: ("adapters", "layerwise", "memory", "numerics", "parallel", "zeroth"),
    4: ("planner", "ways"),
    5: ("show", "bench", "grading", "pretrain"),
    6: ("cli", "commands", "__main__", "__init__"),
}


def layer(module: str) -> int:
    """The layer of 'labkit.show.bits' and the like."""
    name = [*module.split("."), "__init__"][1]
    return next((number for number, names in LAYERS.items() if name in names), -1)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def top_imports(tree: ast.Module) -> list[str]:
    """Modules imported when the file is imported: not inside functions or under TYPE_CHECKING."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" if node.module == "labkit" else node.module for alias in node.names]
    return found


def all_imports(tree: ast.Module) -> set[str]:
    """Top-level names of every package imported anywhere in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_importing_labkit_is_quick_and_light():
    code = (
        "import sys, time; begin = time.perf_counter()\n"
        "import labkit; seconds = time.perf_counter() - begin\n"
        "import labkit.machine, labkit.scale, labkit.assets, labkit.lessons, labkit.cli\n"
        "print(seconds, *sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert float(seconds) < 0.5 and heavy == []


@pytest.mark.parametrize("package", ["labkit", "labkit.show"])
def test_every_public_name_can_be_had_again_and_again(package):
    """A lazily loaded function may not turn into the submodule of its name once that has been imported."""
    code = (
        f"import importlib, types; package = importlib.import_module({package!r})\n"
        "for turn in range(2):\n"
        "    for name in package.__all__:\n"
        "        value = getattr(package, name)\n"
        "        module = isinstance(value, types.ModuleType)\n"
        "        assert module == (name in getattr(package, '_MODULES', ())), (name, value)\n"
        "try: package.nonsense\n"
        "except AttributeError as error: assert 'it offers' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_said_once_everywhere():
    import labkit

    assert PROJECT["version"] == labkit.__version__ == importlib.metadata.version("labkit")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    own = layer(module_name(path))
    assert own >= 0, "name its layer here and in CONTRIBUTING.md"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    upward = [name for name in top_imports(tree) if name.startswith("labkit.") and layer(name) > own]
    assert upward == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 >= 40] == []


def test_every_third_party_import_is_a_declared_dependency():
    # An extra that is not installed here does not tell its import's name.
    owners = {"pynvml": ["nvidia-ml-py"], **importlib.metadata.packages_distributions()}
    extras = PROJECT["optional-dependencies"]
    declared = {_canonical(line) for line in PROJECT["dependencies"] + extras["teach"]}
    undeclared = {}
    for path in SOURCES:
        for name in all_imports(ast.parse(path.read_text(encoding="utf-8"))) - {"labkit", "__future__"}:
            if name in sys.stdlib_module_names:
                continue
            distributions = {_canonical(owner) for owner in owners.get(name, [name])}
            # These come with nbconvert, ipykernel, matplotlib, transformers and torch's CUDA build, which cannot do
            # without them.
            brought = {
                "jinja2",
                "bleach",
                "traitlets",
                "ipython",
                "pygments",
                "pillow",
                "cycler",
                "huggingface-hub",
                "triton",
            }
            if not distributions & (declared | brought):
                undeclared[name] = module_name(path)
    assert undeclared == {}


def _canonical(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement.strip())[0].lower().replace("_", "-")


def test_no_registry_host_and_no_path_of_some_machine():
    hosts = r"pypi\.(org|python)|pythonhosted|huggingface\.co|hf\.co|download\.pytorch|anaconda\.(org|com)|unpkg"
    places = r"(?<![\w.])/(work|opt/venv|root)/"
    forbidden = re.compile(f"{hosts}|{places}")
    here = Path(__file__).resolve()
    found = {
        f"{path.relative_to(ROOT)}:{number}": line.strip()[:90]
        for path in TEXTS
        if path.resolve() != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    }
    assert found == {}


def command_lines(language: str) -> list[str]:
    """The lines of the README's code blocks in one language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_the_quick_start_is_two_lines_for_each_kind_of_shell():
    first, second = command_lines("bash")
    assert first.startswith("python3 -m venv .venv && ") and first.endswith("labkit lab 00") and " -e ." in first
    assert '".[test]"' in second and second.endswith("-m pytest -n 2 --dist loadgroup")
    first, second = command_lines("powershell")
    assert "&&" not in first + second, "PowerShell 5, which Windows ships, knows no &&"
    assert "labkit lab 00" in first and '".[test]"' in second and "-m pytest" in second


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_link_into_the_repository_leads_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("https:", "#"))]
    assert targets and [link for link in targets if not (ROOT / link).exists()] == []


def test_the_readme_lists_the_lessons_that_exist_and_the_commands():
    from labkit.cli import app
    from labkit.lessons import all_lessons

    listed = re.findall(r"\]\(lessons/([^/]+)/lesson\.ipynb\)", README)
    assert listed == [lesson.slug for lesson in all_lessons()]
    for command in app.registered_commands:
        assert f"labkit {command.name}" in README


def test_conda_users_get_the_same_course():
    import yaml
    from packaging.specifiers import SpecifierSet

    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    [by_pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    python = next(entry.partition("=")[2] for entry in conda if entry.startswith("python="))
    assert f"{python}.1" in SpecifierSet(PROJECT["requires-python"])
    assert by_pip == ["-e .[test]"] and environment["name"] in README


def test_torch_and_python_ranges_are_those_that_are_tested():
    assert "torch>=2.11,<2.14" in PROJECT["dependencies"] and PROJECT["requires-python"] == ">=3.11,<3.14"


def test_licences_are_whole():
    code = (ROOT / "LICENSE").read_text(encoding="utf-8")
    lessons = (ROOT / "lessons" / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in code and "END OF TERMS AND CONDITIONS" in code and "9. Accepting Warranty" in code
    assert "Attribution 4.0 International" in lessons and "Section 8 -- Interpretation." in lessons
    assert (ROOT / "labkit" / "py.typed").is_file()


def test_the_wheel_would_carry_jupyterlabs_settings():
    overrides = ROOT / "labkit" / "commands" / "jupyter" / "labconfig" / "default_setting_overrides.json"
    ignored = subprocess.run(["git", "check-ignore", "-q", str(overrides)], cwd=ROOT, capture_output=True)
    assert overrides.is_file() and ignored.returncode != 0
