"""What a command's exit code and last message say about how it ended; see docs/many_hosts.md."""

from input_pipeline.write_errors import full_disk_behind

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

_FREE_SPACE = "free some space; what was finished is kept, the same command goes on"


def exit_code_of(error: BaseException) -> int | None:
    """The code of an error that its message alone explains; None if it needs its traceback.

    Exceptions of ours other than ValueError and OSError say their code in `exit_code`.
    """
    if full_disk_behind(error) is not None:
        return FAILED
    if isinstance(error, ValueError):
        return WRONG_INPUT
    if isinstance(error, OSError):
        return FAILED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return getattr(error, "exit_code", None)


def message_of(error: BaseException) -> str:
    """What to print of an error that has an exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT; what was finished is kept, the same command goes on"
    first = full_disk_behind(error)
    if first is None:
        return str(error)
    told = str(error) if str(first) in str(error) else f"{first}\n{error}"
    return told if "free some" in told else f"{told}\n{_FREE_SPACE}"
