from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.schema import Strict
from stages.params_file import check_sections, read_yaml, section_problems


class Optimiser(Strict):
    learning_rate: Annotated[float, Field(gt=0)]


class Training(Strict):
    epochs: Annotated[int, Field(ge=1)] = 1
    optimiser: Optimiser


SCHEMAS: dict[str, Any] = {"seed": int, "training": Training}


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_exponents_without_a_point_are_floats(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "a: 1e-3\nb: 1.5e3\nc: -2E+4\nd: 0x1e3\ne: 1e\nf: 12\n"))
    assert content["a"] == 0.001
    assert content["b"] == 1500.0
    assert content["c"] == -20000.0
    assert content["d"] == 0x1E3
    assert content["e"] == "1e"
    assert content["f"] == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' stands twice"),
        ("a: [1\n", "not readable as YAML"),
        ("- 1\n", "expected a mapping"),
        ("? [1, 2]\n: 3\n", "not readable as YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_yaml(write(tmp_path, text))


def test_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run from the project's root"):
        read_yaml(tmp_path / "params.yaml")


def test_every_problem_is_reported_at_once() -> None:
    content = {
        "seed": True,
        "training": {"epoch": 3, "epochs": 0, "optimiser": {"learning_rate": "fast", "learning_rat": 1}},
        "trainin": {},
    }
    with pytest.raises(UserError) as caught:
        check_sections(content, SCHEMAS, ["seed", "training"], "params.yaml")
    text = str(caught.value)
    assert "(6 problems)" in text
    assert "seed: got True" in text
    assert "training.epoch: unknown key; did you mean epochs?" in text
    assert "training.epochs: got 0" in text
    assert "training.optimiser.learning_rate: got 'fast'" in text
    assert "training.optimiser.learning_rat: unknown key; did you mean learning_rate?" in text
    assert "trainin: unknown section; did you mean training?" in text


class Crop(Strict):
    side: Annotated[int, Field(ge=16)] | Literal["native"] = "native"
    pair: tuple[int, int] = (1, 1)

    @model_validator(mode="after")
    def _even(self) -> Self:
        if isinstance(self.side, int) and self.side % 2:
            raise ValueError("side: expected an even number")
        return self


def test_a_union_is_one_problem_and_a_rule_hides_no_reason_behind_the_section() -> None:
    assert section_problems("crop", {"side": 3}, Crop) == [
        "crop.side: got 3; should be greater than or equal to 16, or should be 'native'"
    ]
    assert section_problems("crop", {"side": 17}, Crop) == ["crop: side: expected an even number"]
    assert section_problems("crop", {"pair": [1, "x"]}, Crop) == [
        "crop.pair.1: got 'x'; should be a valid integer, unable to parse string as an integer"
    ]


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_a_missing_section_and_key_are_named() -> None:
    with pytest.raises(UserError, match=r"training\.optimiser: this key is missing"):
        check_sections({"seed": 0, "training": {}}, SCHEMAS, ["seed", "training"], "params.yaml")
    with pytest.raises(UserError, match=r"training: this section is missing"):
        check_sections({"seed": 0}, SCHEMAS, ["seed", "training"], "params.yaml")


def test_good_sections_pass() -> None:
    content = {"seed": 3, "training": {"optimiser": {"learning_rate": 1e-3}}}
    check_sections(content, SCHEMAS, ["seed", "training"], "params.yaml")
