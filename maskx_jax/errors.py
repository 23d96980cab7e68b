"""Errors as the user of a program meets them: one line that says what was wrong, and an exit code.

A program of this package is run as `errors.run(main)`, and its exit code is what `main` returns.
What a user can cause (a file, a flag, a field, a full disk) is raised as one of `EXPECTED` with a message that says
what was got, what was expected and where. Anything else is a defect of this package and keeps its traceback.
"""

import argparse
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

EXIT_ERROR = 1
# As a shell reports a program that SIGINT ended: 128 + 2.
EXIT_SIGINT = 130
# And SIGPIPE: 128 + 13.
EXIT_SIGPIPE = 141
EXPECTED = (ArithmeticError, EOFError, ImportError, MemoryError, OSError, RuntimeError, ValueError)
TRACEBACK_FLAG = "--traceback"

_shows_traceback = False


def run(program: Callable[[], Any]) -> NoReturn:
    """Run a program and exit with what it returns; an expected error is one line on stderr and exit code 1.

    Where nobody reads its output any more (`| head`), it ends without a word.

    `--traceback` among the arguments shows where an error comes from instead; it is taken out of `sys.argv`.
    """
    global _shows_traceback
    _shows_traceback = TRACEBACK_FLAG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != TRACEBACK_FLAG]
    try:
        code = program()
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(EXIT_SIGPIPE)
        if _keeps_traceback(error):
            raise
        code = report(error)
    sys.exit(code)


def _nobody_reads() -> bool:
    """Return whether who read stdout has left, as `head` does; nothing more is written there then."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    has_left = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if has_left:
        # Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return has_left


def report(error: BaseException) -> int:
    """Print the error that ends a program on stderr, and return the exit code."""
    if _keeps_traceback(error):
        traceback.print_exception(error)
    else:
        interrupted = isinstance(error, KeyboardInterrupt)
        print(f"error: {'interrupted (SIGINT)' if interrupted else one_line(error)}", file=sys.stderr)
    return EXIT_SIGINT if isinstance(error, KeyboardInterrupt) else EXIT_ERROR


def _keeps_traceback(error: BaseException) -> bool:
    expected = isinstance(error, (KeyboardInterrupt, *EXPECTED))
    # RecursionError and NotImplementedError are RuntimeErrors, and defects all the same.
    return _shows_traceback or not expected or isinstance(error, RecursionError | NotImplementedError)


class ArgumentParser(argparse.ArgumentParser):
    """Raises what is wrong with the arguments, so that `run` answers it as any other error."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a ValueError."""
        raise ValueError(f"{message} (--help lists the arguments)")


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line; the kind of error where it says nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"out of memory: {text}" if text else "out of memory"
    return text or type(error).__name__


def some(items: Iterable[Any], most: int = 5) -> str:
    """Return the first items as text, and how many more there are."""
    items = list(items)
    shown = ", ".join(map(str, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
