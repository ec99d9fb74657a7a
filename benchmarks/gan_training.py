"""Cost of training a GAN: seconds per 1,000 images by phase, peak memory, sampling speed; and in units.

    python benchmarks/gan_training.py --resolution 64 128
    python benchmarks/gan_training.py --resolution 64 --threads 1 --rounds 1 --json

Every measurement runs in a fresh process. See README.md beside this file for how to read the numbers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKLOAD = Path(__file__).resolve().parent / "gan_workload.py"

# What the comparison stands on. Units are those of calibration.py.
BASELINE: dict[str, Any] = {
    "source": "original StyleGAN2-ADA, reference ops, measured 2026-11-22 on 2 cores",
    "threads": 2,
    "config": {
        "fmaps": 0.125,
        "channel_max": 128,
        "w_dim": 512,
        "mapping_layers": 2,
        "batch": 8,
        "augpipe": "bgc",
        "p": 0.5,
    },
    "units_per_kimg": {64: 720, 128: 1440},
    "sampling_images_per_unit": {64: 20, 128: 12},
    "peak_rss_gb": {64: 0.96, 128: 1.55},
}
COMPARED = {
    "units_per_kimg": "units per 1,000 images",
    "sampling_images_per_unit": "sampled images per unit",
    "peak_rss_gb": "peak memory, GB",
}


def main() -> None:
    args = parse_arguments()
    settings = vars(args).copy()
    as_json, resolutions = settings.pop("json"), settings.pop("resolution")
    results = []
    for resolution in resolutions:
        results.append(measure({"resolution": resolution, **settings}))
        if not as_json:
            print(table(results[-1]), flush=True)
    if as_json:
        print(json.dumps({"results": results}, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=count, nargs="+", default=[64, 128], help="side in pixels")
    parser.add_argument("--fmaps", type=float, default=0.125, help="factor on the number of feature maps")
    parser.add_argument("--channel-max", type=count, default=128, help="most feature maps of a layer")
    parser.add_argument("--w-dim", type=count, default=512, help="length of z and w")
    parser.add_argument("--mapping-layers", type=count, default=2)
    parser.add_argument("--batch", type=count, default=8)
    parser.add_argument("--augpipe", default="bgc", help="families of augmentations, or none")
    parser.add_argument("--p", type=float, default=0.5, help="strength of the augmentation")
    parser.add_argument(
        "--memory",
        choices=["keep", "system"],
        default="keep",
        help="keep freed memory for the next tensors, as training does, or return it to the system",
    )
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=3, help="medians are over rounds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def count(text: str) -> int:
    """An int ≥ 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected an int of at least 1")
    return number


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Measure one configuration and set it against the baseline."""
    times, memory = run_workload("times", config), run_workload("memory", config)
    result = {"config": config, **times, **memory}
    differences = differences_from_baseline(config)
    baseline = None
    if not differences:
        baseline = {name: BASELINE[name][config["resolution"]] for name in COMPARED}
        baseline["source"] = BASELINE["source"]
        result["ratio_to_baseline"] = {name: result[name] / baseline[name] for name in COMPARED}
    return {**result, "baseline": baseline, "differences_from_baseline": differences}


def run_workload(part: str, config: dict[str, Any]) -> dict[str, Any]:
    """Measure `times` or `memory` in a fresh process; what it complains about goes to stderr."""
    command = [sys.executable, str(WORKLOAD), part, json.dumps(config)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode != 0:
        sys.exit(f"Error: measuring {part} at {config['resolution']} px failed; see the messages above")
    measured: dict[str, Any] = json.loads(process.stdout)
    return measured


def differences_from_baseline(config: dict[str, Any]) -> list[str]:
    """Say in what a configuration is not the baseline's; empty if the two can be compared."""
    asked = {"threads": BASELINE["threads"], **BASELINE["config"]}
    differences = [
        f"{name} {config[name]}, not {value}" for name, value in asked.items() if config[name] != value
    ]
    if config["resolution"] not in BASELINE["units_per_kimg"]:
        known = " or ".join(map(str, BASELINE["units_per_kimg"]))
        differences.append(f"resolution {config['resolution']}, not {known}")
    return differences


def table(result: dict[str, Any]) -> str:
    """Lay out one result for reading."""
    config, baseline = result["config"], result["baseline"]
    lines = [
        f"{config['resolution']} px, fmaps {config['fmaps']:g} (at most {config['channel_max']}), "
        f"w {config['w_dim']}, batch {config['batch']}, {config['augpipe']} at p={config['p']:g}, "
        f"{config['threads']} threads, memory: {config['memory']}, torch {result['environment']['torch']}",
        result["environment"]["ops"],
        f"1 unit = {result['unit_s']:.3f} s ({spread(result, 'unit_s', 3)})",
        "",
        f"{'phase':<26}{'s per call':>12}",
        *(f"{name:<26}{seconds:>12.3f}" for name, seconds in result["phases_s"].items()),
        "",
        f"{'':<26}{'this':>12}  {'lowest..highest round':<24}{'baseline':>10}{'ratio':>8}",
        plain_row(result, "sec_per_kimg", "s per 1,000 images"),
        plain_row(result, "cores_used", "cores used in training"),
        plain_row(result, "images_per_s", "sampled images per s"),
    ]
    for name, label in COMPARED.items():
        row = plain_row(result, name, label)
        if baseline is not None:
            row = f"{row:<64}{baseline[name]:>10g}{result['ratio_to_baseline'][name]:>8.2f}"
        lines.append(row)
    if baseline is not None:
        lines.append(f"baseline: {baseline['source']}")
    else:
        lines.append("no comparison with the baseline: " + "; ".join(result["differences_from_baseline"]))
    return "\n".join(lines) + "\n"


def plain_row(result: dict[str, Any], name: str, label: str) -> str:
    return f"{label:<26}{result[name]:>12.2f}  {spread(result, name, 2)}"


def spread(result: dict[str, Any], name: str, digits: int) -> str:
    """Lowest and highest round, where there are rounds."""
    if f"{name}_lo" not in result:
        return ""
    return f"{result[f'{name}_lo']:.{digits}f}..{result[f'{name}_hi']:.{digits}f}"


if __name__ == "__main__":
    main()
