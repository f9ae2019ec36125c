"""List the commands, or run one: ``python -m mlx_rtx``, or ``mlx_rtx`` if the package is installed."""

import importlib

from mlx_rtx.support.backend import version
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require

COMMANDS = ("train", "evaluate", "generate", "plot", "plan", "export", "convert", "scaling", "kernel_check")


def run(arguments: list[str]) -> None:
    """Run ``python -m mlx_rtx.COMMAND …`` if a command is given; otherwise list the commands, or print the version.

    Raises:
        UserError: if the command is unknown.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        show_commands()
        return
    name, *rest = arguments
    if name == "--version":
        print(f"mlx_rtx {version('mlx_rtx')}, mlx {version('mlx')}")
        return
    require(name in COMMANDS, f"{name}: unknown command; choose one of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"mlx_rtx.{name}")
    if not hasattr(module, "main"):  # a package with a __main__ module
        module = importlib.import_module(f"mlx_rtx.{name}.__main__")
    module.main(rest)


def show_commands() -> None:
    """Print each command's purpose, from the first line of its module's docstring."""
    print("Recurrent transformers (arXiv 2402.14746) for Apple MLX. Commands, each with --help:\n")
    for name in COMMANDS:
        module = importlib.import_module(f"mlx_rtx.{name}")
        purpose, _, call = (module.__doc__ or "").splitlines()[0].rstrip(".").partition(": ``")
        print(f"  {purpose}\n      {call.strip('`')}")


def main() -> None:
    """Entry point of the ``mlx_rtx`` program."""
    run_command(run)


if __name__ == "__main__":
    main()
