"""The graph and the code agree: stages, sections, deps, layers, presets, the test split's guard."""

import ast
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.intervals import HEADLINES
from stages.closure import COMPILED, import_closure, imported_packages
from stages.context import SHARED_SECTIONS, TEST_SPLIT, check_all_sections
from stages.evaluate import MODELS
from stages.graph import read_graph
from stages.params_file import read_yaml

ROOT = Path(__file__).resolve().parent.parent
GRAPH = read_graph(ROOT / "dvc.yaml")
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage: str) -> None:
    needed = import_closure(Path("stages") / f"{stage}.py")
    code = GRAPH[stage].code
    listed = {path for path in code if path.endswith(".py") or path in COMPILED.values()}
    assert needed - listed == set(), "add these to the stage's deps in dvc.yaml"
    assert listed - needed == set(), "remove these from the stage's deps in dvc.yaml"


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_has_its_file_and_its_section(stage: str) -> None:
    content = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    assert content["cmd"] == f"python -m stages.{stage}"
    assert {"seed", stage} <= set(content["params"])
    assert "runtime" not in content["params"], "how to run must not decide what to re-run"


def test_stages_and_sections_stand_in_the_same_order() -> None:
    assert list(read_yaml(ROOT / "params.yaml")) == [*SHARED_SECTIONS, *GRAPH]


def test_templates_of_the_report_are_deps() -> None:
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline/templates").iterdir()}
    assert templates <= set(GRAPH["report"].deps)


def test_templates_of_plots_exist() -> None:
    """DVC looks for them when it draws, long after a run."""
    own = {path.stem for path in (ROOT / ".dvc/plots").iterdir()}
    content = read_yaml(ROOT / "dvc.yaml")["stages"]["evaluate"]["plots"]
    used = {
        settings["template"] for entry in content for settings in entry.values() if "template" in settings
    }
    assert used == own


def test_the_files_of_metrics_are_those_that_evaluate_writes_and_git_keeps() -> None:
    content = read_yaml(ROOT / "dvc.yaml")["stages"]["evaluate"]["metrics"]
    declared = {path for entry in content for path in entry}
    folders = ("", "full_frame/", *(f"{folder}/" for folder in HEADLINES))
    assert declared == {f"metrics/{folder}{name}.json" for folder in folders for name in MODELS}
    assert all(settings == {"cache": False} for entry in content for settings in entry.values())


def test_only_evaluate_and_report_depend_on_the_test_split() -> None:
    readers = {name for name, node in GRAPH.items() if TEST_SPLIT in node.deps}
    assert readers == {"evaluate", "report"}
    assert TEST_SPLIT in GRAPH["prepare"].outs


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("stages", {"stages", "pipeline", "stylegan2"}),
        ("pipeline", {"pipeline"}),
        ("stylegan2", {"stylegan2"}),
    ],
)
def test_layers_import_only_downwards(package: str, allowed: set[str]) -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")]
    assert files
    wrong = {
        str(file): imported_packages(file) - allowed for file in files if imported_packages(file) - allowed
    }
    assert wrong == {}


@pytest.mark.parametrize("package", ["pipeline", "stylegan2"])
def test_libraries_know_nothing_of_dvc_and_params(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {
            (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        assert not names & {"dvc", "dvclive", "yaml"}, f"{file} imports {names & {'dvc', 'dvclive', 'yaml'}}"


@pytest.mark.parametrize("preset", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.stem)
def test_every_shipped_preset_is_valid(preset: Path) -> None:
    check_all_sections(read_yaml(preset), GRAPH, preset.name)


def test_params_are_the_default_preset() -> None:
    assert {"default", "drive-smoke", "drive-paper"} <= {path.stem for path in PRESETS}
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/default.yaml").read_text()


def test_more_synthetic_images_than_the_pool_holds_are_refused_before_anything_runs() -> None:
    params = read_yaml(ROOT / "params.yaml")
    params["retrain"]["synthetic_count"] = params["synthesize"]["pool"] + 1
    with pytest.raises(UserError, match=r"retrain\.synthetic_count: got \d+, but synthesize\.pool is"):
        check_all_sections(params, GRAPH)
    params["retrain"]["order"] = ["real"]
    check_all_sections(params, GRAPH)


def test_the_best_snapshot_needs_measured_ones() -> None:
    params = read_yaml(ROOT / "params.yaml")
    params["synthesize"]["snapshot"] = "best"
    check_all_sections(params, GRAPH)
    params["train_gan"]["kid_images"] = 0
    with pytest.raises(UserError, match=r"synthesize\.snapshot: got 'best', but train_gan\.kid_images is 0"):
        check_all_sections(params, GRAPH)
