import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline.cli import main

COMMANDS = ("evaluate", "phantoms", "predict")


def test_the_group_lists_its_commands_and_version() -> None:
    assert sorted(main.commands) == list(COMMANDS)
    listed = CliRunner().invoke(main, ["--help"]).output
    assert all(name in listed for name in COMMANDS)
    assert "version" in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "--output" in result.output


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import pipeline.cli; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
