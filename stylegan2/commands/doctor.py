"""`stylegan2 doctor`: what the compiled operations are built with, and whether they compute right."""

import datetime
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from stylegan2.commands.parameters import example, shows_errors
from stylegan2.errors import StyleGAN2Error

if TYPE_CHECKING:
    from stylegan2.ops.build import Recipe


@click.command(epilog=example("stylegan2 doctor"))
@click.option("--rebuild", is_flag=True, help="Build the kernels again, even if a build is there.")
@shows_errors
def doctor(rebuild: bool) -> None:
    """Show what the compiled operations are built with, and test them against the reference.

    Exit code 1: an operation computes something else than the reference, or what is there to build with or is
    asked for by name does not work.
    """
    from stylegan2.ops import native, selection, toolchain
    from stylegan2.ops.build import cpu_recipe, cuda_recipe

    _show_tools()
    click.echo("\nBuilds")
    problems: list[str] = []
    usable: list[str] = []
    finders: dict[str, Callable[[], Recipe]] = {"cpu": cpu_recipe, "cuda": cuda_recipe}
    for kind, find_recipe in finders.items():
        try:
            recipe = find_recipe()
        except StyleGAN2Error as error:
            _line(kind, f"cannot be built: {_text(error)}")
            continue
        try:
            _line(kind, _built(recipe, rebuild))
            native.load(kind)
            usable.append(kind)
        except StyleGAN2Error as error:
            _line(kind, f"failed: {_text(error)}")
            problems.append(f"the {kind} kernels cannot be built")

    click.echo("\nSelection")
    by = f"${selection.VARIABLE}" if os.environ.get(selection.VARIABLE) else "the default"
    _line("asked for", f"{selection.selected()} ({by})")
    by = "the default"
    if os.environ.get(selection.CONVOLUTION_VARIABLE):
        by = f"${selection.CONVOLUTION_VARIABLE}"
    _line("convolution", f"{selection.selected_convolution()} ({by})")
    devices = ["cpu", *(["cuda"] if toolchain.cuda_problem() is None else [])]
    for device in devices:
        try:
            _line(f"{device} tensors", _text(selection.describe_implementation(device)))
        except StyleGAN2Error as error:
            _line(f"{device} tensors", _text(error))
            if str(error).startswith("convolution"):
                problems.append(f"{selection.selected_convolution()} is asked for, and cannot run")
            elif selection.selected() == device or devices == ["cpu"]:
                problems.append(f"{selection.selected()} is asked for, and cannot run")

    problems += _self_test(usable)
    if problems:
        raise click.ClickException("; ".join(problems))
    click.echo("\nNo problems found." if usable else "\nNothing to test: the reference runs.")


def _show_tools() -> None:
    import torch

    from stylegan2.ops import toolchain

    def version(find: Callable[[], tuple[str, ...]]) -> str:
        try:
            command = find()
            return f"{toolchain.compiler_version(command)}, {' '.join(command)}"
        except StyleGAN2Error as error:
            return _text(error)

    click.echo("Tools")
    compiler = version(toolchain.find_cpu_compiler)
    _line("C++ compiler", compiler)
    _line("OpenMP", toolchain.find_openmp(compiler).name)
    _line("nvcc", version(toolchain.find_nvcc))
    problem = toolchain.cuda_problem()
    if problem is None:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        targets = ", ".join(f"sm_{target}" for target in toolchain.present_architectures())
        _line("CUDA", f"runtime {torch.version.cuda}, {targets}, {', '.join(gpus)}")
    else:
        _line("CUDA", problem)
    _line("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    _line("cache", _cache())


def _cache() -> str:
    """Where it is, and what it holds, in millions of bytes."""
    from stylegan2.cache import cache_folder, folder_sizes

    folder = cache_folder()
    try:
        sizes = folder_sizes(folder)
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    parts = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items() if size)
    return f"{folder}, {sum(sizes.values()) / 1e6:.1f} MB{f' ({parts})' if parts else ''}"


def _built(recipe: "Recipe", rebuild: bool) -> str:
    from stylegan2.ops.build import build_once

    build = build_once(recipe, rebuild)
    date = datetime.datetime.fromtimestamp(build.built_at, datetime.UTC).astimezone()
    lines = [
        f"built {date:%Y-%m-%d %H:%M} in {build.seconds:.1f} s by {build.version}",
        f"file {build.library}",
        f"flags {' '.join(build.flags)}",
        *(["OpenMP " + build.openmp] if build.kind == "cpu" else []),
        *build.notes,
    ]
    return ("\n" + " " * 17).join(lines)


def _self_test(usable: list[str]) -> list[str]:
    """Print a table, one line per operation and type; name what is wrong."""
    if not usable:
        return []
    from stylegan2.ops import selftest

    click.echo("\nSelf-test: largest difference from the reference in float64")
    click.echo(
        f"  {'':16}{'type':<10}{'value':>9}{'gradient':>10}{'second':>9}  {'limit':>7}  speed, roughly"
    )
    problems = []
    for kind in usable:
        try:
            ratios = selftest.speed_ratios(kind)
            for result in selftest.compare(kind):
                dtype = str(result.dtype).removeprefix("torch.")
                value, first, second = result.errors
                speed = f"{_rough(ratios[result.operation])}×" if dtype == "float32" else ""
                verdict = speed if result.passed else f"{speed}  FAILED"
                name = f"{kind} {result.operation}"
                numbers = f"{value:>9.1e}{first:>10.1e}{second:>9.1e}  {result.tolerance:>7.0e}"
                click.echo(f"  {name:<16}{dtype:<10}{numbers}  {verdict}".rstrip())
                if not result.passed:
                    problems.append(f"{name} in {dtype} differs from the reference")
        except StyleGAN2Error as error:
            problems.append(_text(error))
    return problems


def _rough(ratio: float) -> str:
    """Two digits at most: the times of a moment hold no more."""
    return f"{ratio:.0f}" if ratio >= 9.5 else f"{ratio:.1f}"


def _line(name: str, text: str) -> None:
    click.echo(f"  {name:<14} {text}")


def _text(error: StyleGAN2Error | str) -> str:
    return str(error).removeprefix("ops: ")
