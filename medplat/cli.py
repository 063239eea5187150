"""The verbs of the command line: options in, an `Outcome` out. No logic, nothing heavy imported."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from medplat import __version__, console, ending, paths
from medplat.commands import Outcome
from medplat.errors import UsageError

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
GIVEN = click.Path(exists=True, path_type=Path)


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`I/N`, the I-th of N parts counted from 1, as two numbers."""
    if value is None:
        return None
    part, _, parts = value.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"'{value}' is not I/N with 1 <= I <= N, as in 2/4.", ctx, param)
    return int(part), int(parts)


def verb(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Give a verb the options that all verbs take, and hand it the project folder."""

    @click.option(
        "--project",
        type=FOLDER,
        metavar="DIR",
        help="Project folder [default: the nearest parent with .medplat/, else the current one].",
    )
    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
    @functools.wraps(function)
    def run(project: Path | None, as_json: bool, quiet: bool, **options: Any) -> Outcome:
        console.set_quiet(quiet)
        return function(project=project.resolve() if project else paths.project(), **options)

    return run


def settings(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """The option `--set key.path=value`."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY.PATH=VALUE",
        help="Set a key of the workflow; the value is read as YAML. May be repeated.",
    )(function)


def batch(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """The options of verbs that go through many series or cases."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing."),
        click.option(
            "--shard", metavar="I/N", callback=_shard, help="Do only the I-th of N parts."
        ),
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            callback=_executor,
        ),
    ):
        function = option(function)
    return function


def _executor(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value == "ray":
        raise UsageError("--executor ray is not built yet: use --shard on several machines")
    return value


def main() -> None:
    """Run the command line and leave with the exit code."""
    sys.exit(ending.run(cli, sys.argv[1:]))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `medplat demo`: the whole loop on embedded data.",
)
@click.version_option(__version__, prog_name="medplat", message="%(prog)s %(version)s")
def cli() -> None:
    """From a PACS export to volumes that can be trusted, to trained models, and back."""


@cli.command(epilog="Example: medplat demo --out demo-out")
@click.option("--out", type=FOLDER, default=Path("demo-out"), metavar="DIR", show_default=True)
@verb
def demo(project: Path, out: Path) -> Outcome:
    """Run the whole loop on embedded synthetic data: convert, train, infer."""
    from medplat.commands import demo

    return demo.run(out, project=project)


@cli.command(epilog="Example: medplat convert export/ nifti/ --workers 4")
@click.argument("source", type=GIVEN)
@click.argument("out", type=FOLDER)
@click.option("--workflow", type=FILE, metavar="FILE", help="A convert workflow.")
@click.option("--dataset", metavar="NAME", help="A dataset plugin with its defaults.")
@settings
@click.option("--labels", type=FOLDER, metavar="DIR", help="Label files of the series.")
@click.option("--deidentify", type=FOLDER, metavar="DIR", help="Also write de-identified DICOM.")
@click.option("--split-phases", is_flag=True, help="One 3-D file a phase.")
@click.option("--allow-shear", is_flag=True, help="Write sheared series with their affine.")
@click.option("--resample", is_flag=True, help="Resample sheared or uneven series.")
@click.option("--decisions", type=FILE, metavar="FILE.csv", help="A person's decisions.")
@click.option(
    "--keep",
    type=click.Choice(["patient-id", "demographics"]),
    multiple=True,
    help="Keep what is left out otherwise. May be repeated.",
)
@click.option("--link-table", type=FILE, metavar="FILE", help="The key to the pseudonyms.")
@click.option("--gzip-level", type=click.IntRange(0, 9), help="[default: the workflow's, 1]")
@click.option("--no-gzip", is_flag=True, help="Write .nii.")
@click.option("--workers", type=click.IntRange(min=1), help="[default: the CPUs, 8 at most]")
@batch
@verb
def convert(project: Path, source: Path, out: Path, **options: Any) -> Outcome:
    """Convert a PACS export to NIfTI, with an account of every file."""
    from medplat.commands import convert

    return convert.run(source, out, project=project, **options)


@cli.command(epilog="Example: medplat verify nifti/ --against export/")
@click.argument("nifti", type=GIVEN)
@click.option("--against", type=GIVEN, required=True, metavar="SOURCE")
@click.option("--repair", is_flag=True, help="Write true files beside the untrue ones.")
@verb
def verify(project: Path, nifti: Path, against: Path, repair: bool) -> Outcome:
    """Compare existing NIfTI files with their DICOM."""
    from medplat.commands import verify

    return verify.run(nifti, against, project=project, repair=repair)


@cli.command(epilog="Example: medplat train unet.yaml --set train.epochs=50")
@click.argument("workflow", type=FILE)
@settings
@click.option("--resume", is_flag=True, help="Go on with the latest unfinished run.")
@verb
def train(project: Path, workflow: Path, settings: tuple[str, ...], resume: bool) -> Outcome:
    """Train a model plugin from a workflow, track it and register the best."""
    from medplat.commands import train

    return train.run(workflow, settings, resume=resume, project=project)


@cli.command(epilog="Example: medplat evaluate evaluate.yaml --set evaluate.split=test")
@click.argument("workflow", type=FILE)
@settings
@verb
def evaluate(project: Path, workflow: Path, settings: tuple[str, ...]) -> Outcome:
    """Measure a registered model on a data set, with intervals."""
    from medplat.commands import evaluate

    return evaluate.run(workflow, settings, project=project)


@cli.command(epilog="Example: medplat compare 3f2a... 91bc...; folds of one model: 3f2a+77d0")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@verb
def compare(project: Path, runs: tuple[str, ...]) -> Outcome:
    """Compare runs in pairs, case by case."""
    if len(runs) < 2:
        raise UsageError("medplat compare needs at least two runs")
    from medplat.commands import compare

    return compare.run(runs, project=project)


@cli.command("import-checkpoint", epilog="Example: medplat import-checkpoint unet weights.pt")
@click.argument("plugin")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--workflow", type=FILE, metavar="FILE", help="The train workflow of the weights.")
@settings
@click.option("--register", metavar="NAME", help="Registered name [default: the plugin's].")
@click.option("--alias", metavar="ALIAS", help="Alias of the new version.")
@click.option("--licence", default="not stated", metavar="TEXT", help="Licence of the weights.")
@click.option("--source", default="not stated", metavar="TEXT", help="Where the file came from.")
@verb
def import_checkpoint(project: Path, plugin: str, file: Path, **options: Any) -> Outcome:
    """Bring a user's weights into the registry, checked name by name."""
    from medplat.commands import import_checkpoint

    return import_checkpoint.run(plugin, file, project=project, **options)


@cli.command(epilog="Example: medplat infer -m models:/lesion@candidate -i export/ -o results/")
@click.option("-m", "--model", required=True, help="models:/name@alias, runs:/ID or a folder.")
@click.option("-i", "--source", type=GIVEN, required=True, help="DICOM, NIfTI or pictures.")
@click.option("-o", "--out", type=FOLDER, required=True, help="Where the results go.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated.")
@click.option("--seg", type=click.Choice(["labelmap", "binary"]), default="labelmap")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Readers."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="For one case.",
)
@batch
@verb
def infer(project: Path, model: str, source: Path, out: Path, **options: Any) -> Outcome:
    """Run a registered model over an export, a NIfTI folder or pictures."""
    from medplat.commands import infer

    return infer.run(model, source, out, project=project, **options)


@cli.command("list", epilog="Example: medplat list models")
@click.argument("what", type=click.Choice(["models", "datasets", "workflows"]), required=False)
@verb
def list_(project: Path, what: str | None) -> Outcome:
    """Name the plugins and the workflows that come with medplat."""
    from medplat.commands import listing

    return listing.list_(what, project=project)


@cli.command(epilog="Example: medplat show unet")
@click.argument("name")
@verb
def show(project: Path, name: str) -> Outcome:
    """Show a plugin, a workflow, `codes` (all verdicts) or `schema` (JSON Schema)."""
    from medplat.commands import listing

    return listing.show(name)


@cli.command(epilog="Example: medplat copy train/unet_phantom my.yaml")
@click.argument("workflow")
@click.argument("dest", type=click.Path(path_type=Path))
@verb
def copy(project: Path, workflow: str, dest: Path) -> Outcome:
    """Copy a workflow that comes with medplat, to be changed."""
    from medplat.commands import listing

    return listing.copy(workflow, dest)


@cli.command(epilog="Example: medplat check my.yaml")
@click.argument("workflows", type=FILE, nargs=-1, metavar="WORKFLOW...")
@click.option("--plugin", metavar="NAME", help="Run the conformance suite on a model plugin.")
@verb
def check(project: Path, workflows: tuple[Path, ...], plugin: str | None) -> Outcome:
    """Find every mistake of workflows, or test a plugin."""
    from medplat.commands import check

    return check.run(workflows, plugin=plugin)


@cli.command(epilog="Example: medplat doctor")
@verb
def doctor(project: Path) -> Outcome:
    """Say what is installed and which kernels each operator would use, and why."""
    from medplat.commands import doctor

    return doctor.run(project=project)


@cli.command(epilog="Example: medplat ui")
@verb
def ui(project: Path) -> Outcome:
    """Serve the MLflow web page on the tracking store in use, until Ctrl-C."""
    from medplat.commands import ui

    return ui.run(project=project)
