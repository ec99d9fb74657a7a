"""`stylegan2 interpolate`: a walk from seed to seed as GIF or MP4."""

import click

from stylegan2.commands.parameters import (
    KEY_SEEDS,
    Drawing,
    Problems,
    drawing_options,
    example,
    file_problems,
    shows_errors,
)


@click.command(
    epilog=example(
        "stylegan2 interpolate models/gan --seeds 3,14,15,92 --trunc 0.7 --frames-per-segment 50 -o walk.gif"
    )
)
@click.option("--seeds", type=KEY_SEEDS, required=True, help="At least two, in the order of the walk.")
@click.option(
    "--frames-per-segment",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Frames between seeds.",
)
@click.option("--fps", type=float, default=25.0, show_default=True, help="Frames a second; GIF: at most 50.")
@click.option(
    "--space",
    type=click.Choice(["w", "z"]),
    default="w",
    show_default=True,
    help="Where to walk: w changes evenly, z stays on latents the network was trained on.",
)
@drawing_options("FILE", "A .gif or an .mp4.")
@shows_errors
def interpolate(drawing: Drawing, seeds: list[int], frames_per_segment: int, fps: float, space: str) -> None:
    """Film a smooth closed walk through the images of the seeds: a periodic cubic spline."""
    from tqdm import tqdm

    from stylegan2.interpolation import interpolate_ws, video_problems, write_video
    from stylegan2.sampling import draw_ws

    out = drawing.out
    problems = Problems(*file_problems(out, drawing.overwrite), *video_problems(out, fps))
    if len(seeds) < 2:
        problems.add("seeds: got one, expected at least two to walk between")
    generator = drawing.load_generator(seeds, problems)
    ws = interpolate_ws(
        generator,
        seeds,
        frames_per_segment,
        drawing.psi,
        space=space,
        class_index=drawing.class_index,
        truncation_cutoff=drawing.cutoff,
    )
    frames = tqdm(
        draw_ws(generator, ws, batch=drawing.batch),
        desc="interpolate",
        unit="frame",
        total=len(ws),
        disable=None,
    )
    write_video(out, frames, fps)
    click.echo(f"{out}: {len(ws)} frames, {len(ws) / fps:.3g} seconds")
