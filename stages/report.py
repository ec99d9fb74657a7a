"""Stage `report`: gather what all stages left behind into one self-contained page."""

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import Field

from pipeline.binarise import Binarisation
from pipeline.diagram import Stage
from pipeline.evaluation import read_per_image
from pipeline.images import read_probability, read_rgb
from pipeline.intervals import read_intervals
from pipeline.prepared import Sample, load_samples
from pipeline.report import ModelResults, ReportInputs, SyntheticExample, write_report
from pipeline.schema import Strict
from stages.context import StageRun, stage_command
from stages.graph import PARAMS_FILE, producer_of
from stages.params_file import read_yaml

MODELS = ("base", "retrained", "ensemble")
PAGE = "index.html"


class Params(Strict):
    """Section `report`: synthetic images shown, and bootstrap draws behind the comparison of models."""

    sample_count: Annotated[int, Field(ge=1, le=64)] = 16
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000


@stage_command("report", Params)
def main(run: StageRun) -> None:
    """Write the page with figures, pictures, graph and parameters."""
    samples = load_samples(run.dep("data/prepared/test"), "test", allow_test=True)
    gan = run.dep("models/gan")
    provenance = run.provenance()
    inputs = ReportInputs(
        dataset=_describe(samples),
        models=[_model(run, name) for name in MODELS],
        per_image=read_per_image(run.dep("metrics/per_image.csv")),
        intervals=read_intervals(run.dep("metrics/intervals.csv")),
        test_samples=samples,
        synthetic=_synthetic(run),
        gan_history=_gan_history(gan),
        gan_progress="kimg",
        gan_snapshots=sorted((gan / "samples").glob("generated_*.png")),
        stages=_graph(run),
        params=_params_text(),
        versions=provenance["versions"],
        git_commit=provenance["git_commit"],
        commands=_commands(provenance["git_commit"]),
        bootstrap_samples=run.params.bootstrap_samples,
        seed=run.seed,
    )
    write_report(run.out("report") / PAGE, inputs)


def _gan_history(gan: Path) -> pd.DataFrame:
    """Read what happened in every tick, and KID where a snapshot was measured."""
    history = pd.read_csv(gan / "history.csv").drop(columns="tick")
    if not (gan / "kid.csv").is_file():
        return history
    kid = pd.read_csv(gan / "kid.csv", dtype={"kimg": float})[["kimg", "kid"]]  # they may all be whole
    return history.merge(kid, how="outer", on="kimg").sort_values("kimg", ignore_index=True)


def _model(run: StageRun, name: str) -> ModelResults:
    folder = run.dep(f"models/{name}")
    history = folder / "history.csv"
    config = _read_json(folder / "config.json")
    fitted = config.get("binarisation")
    return ModelResults(
        name=name,
        threshold=config["threshold"],
        binarisation=None if fitted is None else Binarisation.model_validate(fitted),
        fov=_read_json(run.dep(f"metrics/{name}.json")),
        full_frame=_read_json(run.dep(f"metrics/full_frame/{name}.json")),
        roc=pd.read_csv(run.dep("plots/roc") / f"{name}.csv"),
        precision_recall=pd.read_csv(run.dep("plots/pr") / f"{name}.csv"),
        predictions=run.dep("predictions") / name,
        history=None if name == "ensemble" else pd.read_csv(history),
    )


def _synthetic(run: StageRun) -> list[SyntheticExample]:
    """Take the first images of the pool: a selection would flatter the generator."""
    images, probabilities = run.dep("data/synthetic/images"), run.dep("data/synthetic/probabilities")
    manifest = pd.read_csv(images / "manifest.csv", dtype={"id": str, "image": str})
    names = manifest["image"].head(run.params.sample_count)
    return [
        SyntheticExample(read_rgb(images / name), read_probability(probabilities / name)) for name in names
    ]


def _describe(samples: list[Sample]) -> str:
    sizes = sorted({f"{sample.width}×{sample.height}" for sample in samples})
    text = f"{len(samples)} labelled test images of {', '.join(sizes[:4])} pixels"
    if all(sample.source.startswith("phantom(") for sample in samples):
        text += ": drawn fundus phantoms, so the figures say nothing about real eyes"
    return text


def _graph(run: StageRun) -> list[Stage]:
    stages = []
    for node in run.graph.values():
        producers = {producer_of(path, run.graph) for path in node.deps} - {None}
        parents = tuple(name for name in run.graph if name in producers)
        stages.append(Stage(node.name, parents, node.outs))
    return stages


def _params_text() -> str:
    """Give params.yaml without `runtime`, which does not change results."""
    values = {section: value for section, value in read_yaml(PARAMS_FILE).items() if section != "runtime"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _commands(commit: str | None) -> list[str]:
    if commit is None:
        return ["make repro"]
    clean = commit.removesuffix("-dirty")
    note = "  # plus local changes, which no commit holds" if clean != commit else ""
    return [f"git checkout {clean}{note}", "make repro"]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
