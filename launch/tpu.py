"""Cloud TPU VMs by queued resources: rents, sets up, trains, resumes after preemption, deletes.

    python -m launch.tpu up --name=maft --zone=us-west4-a --accelerator_type=v5litepod-16 \\
        --capacity=spot --fetch=gs://BUCKET/ViT-B-16.pt -- \\
        --config=configs/coco.py --workdir=gs://BUCKET/run1 \\
        --config.data.records=gs://BUCKET/coco_records --config.model.pretrained=ViT-B-16.pt

`up` does everything, and the same command again goes on where it was. The other commands are its
steps: create, wait, setup, run, watch; and status, logs, stop, delete. What stands after -- goes to
maft_jax.main on every machine. docs/tpu.md begins with a Google Cloud project and ends with the
model, what it cost and how to stop paying.

Exit codes: 0 done, 1 failed, 2 wrong input, 3 it could not be deleted and may cost on (the
last line has the command that stops the payment), 130 and 143 interrupted or stopped.
"""

import argparse
import sys
from collections.abc import Callable

from launch import command_line, commands
from launch.commands import CAPACITIES, Request, Target
from launch.dry_run import DryClock, DryRunner
from launch.interruptions import Interrupted
from launch.lifecycle import Lifecycle, Refused, TrainingStopped
from launch.queued_resources import QueuedResource
from launch.remote_job import RemoteJob
from launch.runner import Clock, LaunchError, Progress, SubprocessRunner
from launch.secrets_file import check_secrets_file

PRICES = "https://cloud.google.com/tpu/pricing"


class StillRented(LaunchError):
    """What was to be deleted may be there still, and cost."""

    exit_code = 3


def create(options: argparse.Namespace) -> None:
    """Asks Google for the machines; they may come later (wait)."""
    options.resource.create(options.request)
    _say_how_to_stop_paying(options)


def wait(options: argparse.Namespace) -> None:
    """Waits until the machines are there."""
    options.resource.wait_until_active()


def setup(options: argparse.Namespace) -> None:
    """Copies this checkout, secrets and --fetch to the machines, and installs it."""
    _job(options).set_up(options.env_file, options.fetch)


def run(options: argparse.Namespace) -> None:
    """Starts training on all machines; it goes on without this command."""
    for state in _job(options).start():
        print(state)


def watch(options: argparse.Namespace) -> None:
    """Looks after a training until it ends; asks for no new machines."""
    Lifecycle(options.resource, options.request, options.arguments).watch(_job(options))


def status(options: argparse.Namespace) -> None:
    """Shows the resource, its slices and the training on each machine."""
    found = options.resource.describe()
    if found is None:
        print(f"{options.target.name}: there is no such queued resource; nothing costs")
        return
    print(f"{options.target.name}: {found.state} {found.accelerator_type} {found.error}".rstrip())
    if found.state == "ACTIVE":
        job = RemoteJob(options.resource, options.resource.num_workers(found.nodes), [])
        print(f"slices and their machines: {job.num_workers}")
        for state in job.ask_all():
            print(f"{state}: {state.last_line}")
        _say_how_to_stop_paying(options)


def logs(options: argparse.Namespace) -> None:
    """Shows the output of one machine."""
    node = options.node or options.target.name
    verb = "follow" if options.follow else "log"
    command = commands.job(verb, str(options.lines))
    code = options.runner.show(commands.ssh(options.target, node, command, str(options.worker)))
    if code:
        raise LaunchError(
            f"{node}, worker {options.worker}: gcloud left with code {code}. Slices of several are "
            f"called {options.target.name}-0, -1, ...: --node; status shows them"
        )


def stop(options: argparse.Namespace) -> None:
    """Has training save and leave; the machines stay, and cost."""
    for state in _job(options).signal("stop"):
        print(state)
    _say_how_to_stop_paying(options)


def delete(options: argparse.Namespace) -> None:
    """Ends the queued resource and its machines, whatever they do."""
    try:
        options.resource.delete()
        options.resource.wait_until_gone()
    except (LaunchError, Interrupted, OSError) as error:
        raise StillRented(
            f"COULD NOT DELETE {options.target.name}: {error}\n\n{_how_to_stop_paying(options)}"
        ) from error
    options.progress.say("deleted: it costs nothing any more (buckets do)")


def up(options: argparse.Namespace) -> None:
    """Does everything, again after every preemption, until training is done; then deletes."""
    lifecycle = Lifecycle(
        options.resource,
        options.request,
        options.arguments,
        options.env_file,
        options.fetch,
        options.max_attempts,
    )
    try:
        lifecycle.up()
        options.progress.say("training is done")
    except Interrupted:
        options.progress.say(
            "interrupted. Training goes on by itself, but nobody asks for new machines after a "
            "preemption until the same command runs again"
        )
        if not options.delete_on_interrupt:
            _say_how_to_stop_paying(options)
            raise
        _delete_at_the_end(options)
        raise
    except (Refused, TrainingStopped):
        _say_how_to_stop_paying(options)
        raise
    except LaunchError as error:
        _delete_at_the_end(options, f"{error}\n\n")
        raise
    except Exception:
        _say_how_to_stop_paying(options)
        raise
    else:
        _delete_at_the_end(options)
    finally:
        hours = lifecycle.active_seconds / 3600
        options.progress.say(
            f"{hours * options.request.num_chips:.1f} chip-hours seen by this command, times the "
            f"price of a chip-hour: {PRICES}"
        )


_NAMES = ["create", "wait", "setup", "run", "watch", "status", "logs", "stop", "delete", "up"]
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {n: globals()[n] for n in _NAMES}
_RENT, _COPY, _TRAIN = {"create", "up"}, {"setup", "up"}, {"run", "watch", "up"}


def parser() -> argparse.ArgumentParser:
    """Flags of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m launch.tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        usage = " -- --config=... --workdir=gs://..." if name in _TRAIN else ""
        sub = subparsers.add_parser(
            name,
            help=function.__doc__,
            description=function.__doc__,
            usage=f"python -m launch.tpu {name} [flags]{usage}",
            allow_abbrev=False,
        )
        _add_common(sub)
        if name in _RENT:
            _add_renting(sub)
        if name in _COPY:
            _add_copying(sub)
        if name == "up":
            _add_lifecycle(sub)
        if name == "logs":
            _add_logs(sub)
    return top


def _add_common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="of the queued resource")
    sub.add_argument("--zone", required=True, help="such as us-west4-a; docs/tpu.md has a table")
    sub.add_argument("--project", help="default: the one that gcloud is set to")
    sub.add_argument("--poll_seconds", type=float, default=30, help="between two looks; default 30")
    sub.add_argument(
        "--retry_seconds", type=float, default=60, help="before the second try; default 60"
    )
    command_line.add_dry_run(sub)


def _add_renting(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--accelerator_type", required=True, help="of a slice: v5litepod-16, v6e-8, v5p-8, v4-8")
    add("--num_slices", type=int, default=1, help="slices that train together; default 1")
    add(
        "--capacity",
        choices=CAPACITIES,
        default="on_demand",
        help="spot is cheaper and may be taken away; reserved needs a reservation; flex_start "
        "(a preview of Google's) ends by itself after --max_run_duration",
    )
    add("--max_run_duration", help="of flex_start, such as 12h, at most 7d")
    add("--valid_until_duration", help="give up waiting in the queue after this time, such as 6h")
    add("--runtime_version", help="image of the machines; default: the one for JAX on these chips")
    add(
        "--create_flag",
        action="append",
        default=[],
        help="a further flag of gcloud's create, such as --create_flag=--network=mine; repeatable",
    )


def _add_copying(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add(
        "--env_file",
        help="file of NAME=value lines for training's environment, such as tokens, that only you "
        "may read (chmod 600); it is copied, its content never shown",
    )
    add(
        "--fetch",
        action="append",
        default=[],
        metavar="gs://...",
        help="file or folder to copy into the folder that training runs in, such as "
        "gs://BUCKET/ViT-B-16.pt; repeatable",
    )


def _add_lifecycle(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--max_attempts", type=int, default=10, help="failures in a row before giving up")
    add("--keep", action="store_true", help="do not delete at the end; it goes on costing")
    add("--delete_on_interrupt", action="store_true", help="delete on Ctrl-C and SIGTERM, too")


def _add_logs(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--node", help="slice; default: NAME, or NAME-0 of several")
    add("--worker", type=int, default=0, help="machine of the slice; default 0")
    add("--lines", type=int, default=50, help="from the end; default 50")
    add("--follow", action="store_true", help="and what comes after, until Ctrl-C")


def main(argv: list[str]) -> int:
    """Runs a command and returns the exit code."""
    return command_line.run(
        parser(),
        lambda options, arguments: COMMANDS[options.command](_complete(options, arguments)),
        argv,
    )


def _complete(options: argparse.Namespace, arguments: list[str]) -> argparse.Namespace:
    """Checks the flags, and adds what the commands work with."""
    options.target = Target(options.name, options.zone, options.project)
    options.request = None
    if options.command in _RENT:
        options.request = Request(
            options.accelerator_type,
            options.num_slices,
            options.capacity,
            options.runtime_version,
            options.valid_until_duration,
            options.max_run_duration,
            tuple(options.create_flag),
        )
    if options.command in _TRAIN:
        command_line.check_training_arguments(arguments, shared="gs://")
    elif arguments:
        raise ValueError(f"{options.command}: expected flags alone, got {arguments} after --")
    options.arguments = arguments
    if options.command in _COPY:
        _check_copying(options)
    options.runner, clock = SubprocessRunner(), Clock()
    if options.dry_run:
        options.runner, clock = DryRunner(options.target, options.request), DryClock()
    options.progress = Progress(clock)
    options.resource = QueuedResource(
        options.target,
        options.runner,
        clock,
        options.progress,
        poll_seconds=options.poll_seconds,
        retry_seconds=options.retry_seconds,
    )
    return options


def _check_copying(options: argparse.Namespace) -> None:
    if options.env_file is not None:
        check_secrets_file(options.env_file)
    for address in options.fetch:
        if not address.startswith("gs://"):
            raise ValueError(f"--fetch={address}: expected gs://BUCKET/...")


def _job(options: argparse.Namespace) -> RemoteJob:
    found = options.resource.describe()
    if found is None or found.state != "ACTIVE":
        state = "does not exist" if found is None else f"is {found.state}"
        raise LaunchError(f"{options.target.name} {state}; expected ACTIVE (create, then wait)")
    return RemoteJob(options.resource, options.resource.num_workers(found.nodes), options.arguments)


def _delete_at_the_end(options: argparse.Namespace, why: str = "") -> None:
    """`why` this is the end is told before that it could not be deleted."""
    if options.keep:
        _say_how_to_stop_paying(options)
        return
    try:
        delete(options)
    except StillRented as error:
        raise StillRented(f"{why}{error}") from error


def _say_how_to_stop_paying(options: argparse.Namespace) -> None:
    options.progress.say(_how_to_stop_paying(options))


def _how_to_stop_paying(options: argparse.Namespace) -> str:
    project = "" if options.project is None else f" --project={options.project}"
    return (
        f"{options.target.name} costs as long as it is ACTIVE. To stop paying: "
        f"python -m launch.tpu delete --name={options.target.name} --zone={options.target.zone}"
        f"{project}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
