"""What this machine has, what cannot work and what will be slow: a page for a bug report.

    python -m maft_jax.cli.doctor
    python -m maft_jax.cli.doctor --json --offline my_photos

Devices, memory, cores, packages beside the versions that are known to work, extras, disks (also of
folders that are named), and whether the hub of weights can be reached, which --offline leaves out.
No names of users, no tokens, nothing else of the environment. It takes seconds, and at most two
minutes where a driver, a disk or the network does not answer.

Exit codes: 0 nothing that cannot work, 1 something cannot, 2 wrong input, 130 and 143 interrupted.
"""

import argparse
import json
import sys

from maft_jax import __version__
from maft_jax.doctor.examination import examine
from maft_jax.doctor.page import format_page, without_names
from maft_jax.runtime import stop_requests
from maft_jax.runtime.command_names import as_called


def main(arguments: list[str]) -> int:
    """Prints the page, and returns the exit code. Needs the standard library alone."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=as_called(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of data, to look at as well")
    parser.add_argument("--json", action="store_true", help="the same as JSON, with more detail")
    parser.add_argument("--offline", action="store_true", help="ask nothing over the network")
    given = parser.parse_args(arguments)
    found = {"maft_jax": __version__} | without_names(examine(given.folders, given.offline))
    try:
        print(json.dumps(found, indent=2) if given.json else format_page(found))
    except BrokenPipeError:
        pass  # its reader has left, as `head` does
    except OSError as error:
        print(f"standard output: {error}", file=sys.stderr)
        return 1
    return 1 if found["cannot_work"] else 0


if __name__ == "__main__":
    stop_requests.watch()
    stop_requests.leave(main(sys.argv[1:]))
