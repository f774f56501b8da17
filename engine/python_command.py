"""How processes of our own are started: by the name of a module, which is found where ours are."""

import sys


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Runs `module` as a program in this Python, with this process's PYTHONPATH but without its working directory.

    `-m` alone would put that first, and a user's queue.py in place of the standard library's.
    """
    return (sys.executable, "-P", "-m", module, *arguments)
