"""List the commands: ``python -m mlx_rtx``."""

import importlib

COMMANDS = ("train", "evaluate", "generate", "plot", "plan", "export", "convert", "scaling", "kernel_check")


def main() -> None:
    """Print each command's line of purpose, which is the first of its module."""
    print("Recurrent transformers (arXiv 2402.14746) for Apple MLX. Commands, each with --help:\n")
    for name in COMMANDS:
        module = importlib.import_module(f"mlx_rtx.{name}")
        purpose, _, call = (module.__doc__ or "").splitlines()[0].rstrip(".").partition(": ``")
        print(f"  {purpose}\n      {call.strip('`')}")


if __name__ == "__main__":
    main()
