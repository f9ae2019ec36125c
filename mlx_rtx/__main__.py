"""List the commands, or run one: ``python -m mlx_rtx``, or ``mlx_rtx`` where the package is installed."""

import importlib

from mlx_rtx.support.backend import version
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require

COMMANDS = ("train", "evaluate", "generate", "plot", "plan", "export", "convert", "scaling", "kernel_check")


def run(arguments: list[str]) -> None:
    """Do as ``python -m mlx_rtx.COMMAND …`` does where a command is named; else list them, or say the version."""
    if not arguments or arguments[0] in ("-h", "--help"):
        show_commands()
        return
    name, *rest = arguments
    if name == "--version":
        print(f"mlx_rtx {version('mlx_rtx')}, mlx {version('mlx')}")
        return
    require(name in COMMANDS, f"{name}: is no command; choose one of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"mlx_rtx.{name}")
    if not hasattr(module, "main"):  # a room with a command of its own
        module = importlib.import_module(f"mlx_rtx.{name}.__main__")
    module.main(rest)


def show_commands() -> None:
    """Print each command's line of purpose, which is the first of its module."""
    print("Recurrent transformers (arXiv 2402.14746) for Apple MLX. Commands, each with --help:\n")
    for name in COMMANDS:
        module = importlib.import_module(f"mlx_rtx.{name}")
        purpose, _, call = (module.__doc__ or "").splitlines()[0].rstrip(".").partition(": ``")
        print(f"  {purpose}\n      {call.strip('`')}")


def main() -> None:
    """Run what the command line asks for."""
    run_command(run)


if __name__ == "__main__":
    main()
