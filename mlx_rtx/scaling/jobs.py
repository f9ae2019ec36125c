"""Parallel processes, which are terminated if the program is interrupted."""

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def run_all(commands: Sequence[Sequence[object]], jobs: int) -> list[int]:
    """Run commands, ``jobs`` at a time, and return their exit codes."""
    running: list[subprocess.Popen] = []

    def run(words: Sequence[object]) -> int:
        process = subprocess.Popen([str(word) for word in words])
        running.append(process)
        return process.wait()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(run, commands))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
