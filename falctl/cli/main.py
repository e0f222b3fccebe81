"""The ``falctl`` command. Each verb imports what it needs when it runs, so that ``falctl --help`` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from falctl.errors import FalctlError
from falctl.version import __version__

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Every GPU in a workstation behind one local endpoint, each request sent to the card that is warm for it.",
)

Model: TypeAlias = Annotated[str, typer.Argument(help="the model, as requests name it")]
Runner: TypeAlias = Annotated[int | None, typer.Option(help="its number, as `falctl status` shows it", min=0)]
ModelApp: TypeAlias = Annotated[
    str | None, typer.Option("--app", help="whose model it is, where there are several apps", metavar="ALIAS")
]


def main() -> None:
    """Run the command line; every error of ours is one line and its own exit code."""
    _open_standard_streams()
    try:
        cli()
    except FalctlError as error:
        sys.stderr.write(f"falctl: {error}\n")
        sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"falctl {__version__}")
        raise typer.Exit


def _open_standard_streams() -> None:
    """Open what a daemon manager has closed: a pipe of ours would get its number, and be written over by a child's."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for the whole life
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for the whole life


@cli.callback()
def falctl(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Every GPU in a workstation behind one local endpoint, each request sent to the card that is warm for it."""
    del version  # the callback has done it


@cli.command()
def up(
    app: Annotated[str | None, typer.Argument(help="module:Class or path.py::Class", metavar="[APP]")] = None,
    *,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="configuration; default ./falctl.toml")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="all, none, 0,2 or UUIDs")] = None,
    runners: Annotated[int | None, typer.Option(help="number of runners", min=1, max=64)] = None,
    port: Annotated[
        int | None, typer.Option(help="port to listen on; 0 takes a free one", min=0, max=65535)
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="speak TLS on server.tls_port, too")] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="return once it is up")] = False,
) -> None:
    """Start a runner on every GPU and the router in front of them."""
    from falctl.cli.up import Options, up_command

    raise typer.Exit(up_command(Options(app, config, gpus, runners, port, tls=tls), detach=detach))


@cli.command()
def down(
    *,
    timeout: Annotated[float, typer.Option(help="seconds to wait for it to end")] = 60.0,
    now: Annotated[bool, typer.Option("--now", help="do not let running requests finish")] = False,
) -> None:
    """Stop the falctl that runs."""
    from falctl.cli.down import down_command

    raise typer.Exit(down_command(timeout_s=timeout, now=now))


@cli.command()
def status(
    *,
    once: Annotated[bool, typer.Option("--once", help="print once, do not stay")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, see docs/status.md")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="no colours; NO_COLOR does the same")] = False,
) -> None:
    """Show every GPU, the models it holds and what it does, live."""
    from falctl.cli.status import status_command

    raise typer.Exit(status_command(once=once, json_output=as_json, no_color=no_color))


@cli.command()
def run(
    model: Annotated[str, typer.Argument(help="the model, as the app knows it")],
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    *,
    app: Annotated[
        str | None, typer.Option(help="which app draws it, where there are several", metavar="ALIAS")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write")] = Path("out.png"),
    steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance scale")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed draws the same image")] = None,
) -> None:
    """Draw one image and say whether the model was warm. Where API keys are asked for, FALCTL_KEY holds yours."""
    from falctl.cli.run import run_command

    given = {"num_inference_steps": steps, "guidance_scale": guidance, "seed": seed}
    options = {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(run_command(model, prompt, app=app, output=output, options=options))


@cli.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(
    command: Annotated[list[str], typer.Argument(help="a program and its arguments", metavar="-- COMMAND")],
) -> None:
    """Run a program whose fal client (Python) calls the falctl that runs, without a change to it."""
    from falctl.cli.exec import exec_command

    exec_command(command)


@cli.command()
def env(
    *,
    shell: Annotated[
        str, typer.Option("--shell", help="how they are written: sh, fish, or plain (.env files)")
    ] = "sh",
) -> None:
    """Print the variables by which fal's Python client calls the falctl that runs over TLS (`falctl up --tls`)."""
    from falctl.cli.env import env_command

    raise typer.Exit(env_command(shell))


@cli.command()
def explain(
    request: Annotated[
        str, typer.Argument(help="X-Fal-Request-Id of an answer, or how it begins", metavar="REQUEST_ID")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Tell what was decided about a request, when, and what was compared."""
    from falctl.cli.explain import explain_command

    raise typer.Exit(explain_command(request, json_output=as_json))


@cli.command()
def why(
    model: Annotated[str, typer.Argument(help="the model, as requests name it")],
    *,
    app: Annotated[
        str | None, typer.Option(help="whose model it is, where there are several apps", metavar="ALIAS")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Tell why requests for a model wait, or where one would go now."""
    from falctl.cli.explain import why_command

    raise typer.Exit(why_command(model, app=app, json_output=as_json))


@cli.command()
def logs(
    *,
    request: Annotated[
        str | None,
        typer.Option("--request", metavar="REQUEST_ID", help="what its app printed for one request"),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as more is printed")] = False,
    lines: Annotated[
        int, typer.Option("-n", "--lines", help="of a detached falctl's log, the last so many", min=0)
    ] = 200,
    as_json: Annotated[
        bool, typer.Option("--json", help="with --request: JSON, followed line by line")
    ] = False,
) -> None:
    """Print what a detached falctl and its runners print, or what an app printed for one request."""
    from falctl.cli.logs import Options, logs_command

    raise typer.Exit(logs_command(Options(request, follow, lines, as_json)))


@cli.command()
def jobs(
    *,
    most: Annotated[
        int, typer.Option("-n", "--most", help="how many that wait, and how many that ended", min=0)
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """List what runs, what waits, and the jobs that have ended lately."""
    from falctl.cli.jobs import jobs_command

    raise typer.Exit(jobs_command(most=most, json_output=as_json))


@cli.command()
def cancel(
    request: Annotated[
        str, typer.Argument(help="an id, or how it begins, as `falctl jobs` shows it", metavar="REQUEST_ID")
    ],
) -> None:
    """Cancel a request, whether it waits or runs."""
    from falctl.cli.jobs import cancel_command

    raise typer.Exit(cancel_command(request))


@cli.command()
def load(
    model: Model,
    *,
    runner: Runner = None,
    tier: Annotated[
        str | None, typer.Option(help="how far: vram, the card (default), or ram, host memory")
    ] = None,
    app: ModelApp = None,
) -> None:
    """Load a model ahead of any request, where that costs least or on one runner."""
    from falctl.cli.models import Options, load_command

    raise typer.Exit(load_command(Options(model, runner, app, tier)))


@cli.command()
def unload(
    model: Model,
    *,
    runner: Runner = None,
    tier: Annotated[
        str | None,
        typer.Option(help="ram: off the card, but kept in host memory; disk: out of both (default)"),
    ] = None,
    app: ModelApp = None,
) -> None:
    """Have a model leave every runner that has it, or one."""
    from falctl.cli.models import Options, change_command

    raise typer.Exit(change_command("unload", Options(model, runner, app, tier)))


@cli.command()
def pin(model: Model, *, runner: Runner = None, app: ModelApp = None) -> None:
    """Let a model leave for nothing on every runner that has it; on one, it is loaded there if need be."""
    from falctl.cli.models import Options, change_command

    raise typer.Exit(change_command("pin", Options(model, runner, app)))


@cli.command()
def unpin(model: Model, *, runner: Runner = None, app: ModelApp = None) -> None:
    """Let a pinned model leave again."""
    from falctl.cli.models import Options, change_command

    raise typer.Exit(change_command("unpin", Options(model, runner, app)))


@cli.command()
def record(
    file: Annotated[Path, typer.Argument(help="trace to write: .csv or .jsonl, with .gz compressed")],
    *,
    hash_hints: Annotated[
        bool, typer.Option("--hash-hints", help="hide the names of models; clients' are always hidden")
    ] = False,
    for_: Annotated[str | None, typer.Option("--for", help="how long, such as 10m; until Ctrl-C")] = None,
    app: Annotated[
        str | None, typer.Option(help="whose requests, where there are several apps", metavar="ALIAS")
    ] = None,
) -> None:
    """Write a trace of the requests that end from now on, for `falctl replay`."""
    from falctl.cli.record import Options, record_command

    raise typer.Exit(record_command(Options(file, hash_hints, for_, app)))


@cli.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="requests to replay: CSV or JSON lines, .gz allowed")],
    *,
    policy: Annotated[
        str, typer.Option(help="auto, affinity, fal, least-loaded, random or module:Class; several: a,b")
    ],
    runners: Annotated[int, typer.Option(help="number of runners", min=1, max=1024)],
    slots: Annotated[int | None, typer.Option(help="models that a runner holds", min=1)] = None,
    vram: Annotated[str | None, typer.Option(help="bytes that a runner holds, such as 48GiB")] = None,
    load_factor: Annotated[float, typer.Option(help="every load takes this many times as long")] = 1.0,
    no_overlap: Annotated[bool, typer.Option("--no-overlap", help="no load beside an execution")] = False,
    seed: Annotated[int, typer.Option(help="what the policy random draws from")] = 0,
    exec_s: Annotated[float | None, typer.Option(help="execution seconds of rows that have none")] = None,
    load_s: Annotated[float | None, typer.Option(help="load seconds of rows that have none")] = None,
    ram: Annotated[
        str | None, typer.Option(help="what host memory holds: bytes with --vram, models with --slots")
    ] = None,
    ram_load: Annotated[float, typer.Option(help="a load from there, as a share of one from disk")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Replay a trace through the real scheduler on a virtual clock, and compare policies."""
    from falctl.cli.replay import Options, replay_command

    options = Options(
        trace, policy, runners, slots, vram, load_factor, not no_overlap, seed, exec_s, load_s, ram, ram_load
    )
    raise typer.Exit(replay_command(options, json_output=as_json))


@cli.command()
def key() -> None:
    """Make an API key; print it and the line for server.api_keys."""
    from falctl.apikeys import hash_key, new_key

    secret = new_key()
    typer.echo(f"key, for clients (shown once):  {secret}")
    typer.echo(f'line for [server]:              api_keys = ["{hash_key(secret)}"]')
    typer.echo(f"clients send:                   Authorization: Key {secret}")
    typer.echo("falctl run takes it from:       FALCTL_KEY")


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"falctl {__version__}")


if __name__ == "__main__":
    main()
