"""OpenBLAS: which library is loaded, and the script that fetches it, with fake versions of apt and similar programs."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlx_rtx.support import backend, openblas

import mlx.core as mx
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_openblas.sh"
FETCHED = "openblas/usr/lib/{}/openblas-pthread/libopenblas.so.0"


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Record which libraries the loader tries on Linux before MLX is loaded; those in ``tried.there`` exist."""

    class Tried(list):
        there = ()

    tried = Tried()

    def load(name, mode):
        assert mode == ctypes.RTLD_GLOBAL
        tried.append(name.removeprefix(f"{tmp_path}/openblas/"))
        if tried[-1] not in tried.there:
            raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlx.core")
    return tried


def place(folder, *files):
    for file in files:
        (folder / "openblas" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "openblas" / file).touch()


@pytest.mark.parametrize("name", openblas.SYSTEM)
def test_the_systems_library_is_taken_first(tried, tmp_path, name):
    place(tmp_path, "usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0")
    tried.there = [name]
    assert openblas.prefer_openblas()
    assert tried == list(openblas.SYSTEM[: openblas.SYSTEM.index(name) + 1])


@pytest.mark.parametrize(
    ("architecture", "runtime"),
    [("x86_64-linux-gnu", ["libquadmath.so.0", "libgfortran.so.5"]), ("aarch64-linux-gnu", ["libgfortran.so.5"])],
)
def test_the_environments_library_is_used_if_the_system_has_none(tried, tmp_path, architecture, runtime):
    files = [f"usr/lib/{architecture}/{name}" for name in (*runtime, "openblas-pthread/libopenblas.so.0")]
    place(tmp_path, *files, *(f"{file}.0.0" for file in files))  # the files that those link to
    tried.there = files
    assert openblas.prefer_openblas()
    assert tried == [*openblas.SYSTEM, *files]


def test_a_fetched_library_of_another_architecture_is_ignored(tried, tmp_path):
    place(tmp_path, "usr/lib/aarch64-linux-gnu/libgfortran.so.5")
    place(tmp_path, "usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0")
    assert not openblas.prefer_openblas()


def test_without_openblas_there_is_advice(tried, monkeypatch):
    assert not openblas.prefer_openblas()
    assert tried == list(openblas.SYSTEM)
    monkeypatch.setitem(sys.modules, "mlx.core", mx)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    for found in (False, True):
        monkeypatch.setattr(backend, "HAS_OPENBLAS", found)
        assert backend.advice() == (None if found else backend.REMEDY)


def test_it_is_too_late_once_mlx_is_loaded(tried, monkeypatch):
    tried.there = openblas.SYSTEM
    monkeypatch.setitem(sys.modules, "mlx.core", mx)
    assert not openblas.prefer_openblas()
    assert tried == []


def test_only_linux_needs_it(tried, monkeypatch):
    tried.there = openblas.SYSTEM
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not openblas.prefer_openblas()
    assert tried == []


class Machine:
    """A machine with only the programs that a test provides, and an environment without OpenBLAS."""

    def __init__(self, folder):
        self.bin, self.calls, self.environment = folder / "bin", folder / "calls", folder / "environment"
        self.bin.mkdir()
        for tool in ("bash", "dirname", "env", "grep", "mkdir", "mktemp", "mv", "rm", "touch"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.program("uname", "echo Linux")
        (self.environment / "bin").mkdir(parents=True)
        self.calls.touch()
        self.python_finds("openblas/usr/lib/*/openblas-pthread/libopenblas.so.0")

    def program(self, name, body):
        """Add a fake program that records its arguments."""
        path = self.bin / name
        path.write_text(f'#!{shutil.which("bash")}\necho "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def python_finds(self, pattern):
        path = self.environment / "bin" / "python"
        path.write_text(f'#!{shutil.which("bash")}\ntest -e "$2" && test -e {self.environment}/{pattern}\n')
        path.chmod(0o755)

    def debian(self, architecture="x86_64-linux-gnu", runtime=("libgfortran5", "libquadmath0"), refused=0, warning=""):
        """Add apt and dpkg; apt refuses the first ``refused`` downloads, and warns when it fetches package lists."""
        names = ["libopenblas0-pthread", "  Depends: libc6", "libc6", *runtime, "libgfortran5:i386"]
        self.program("apt-cache", "\n".join(f"echo '{name}'" for name in names))
        self.program(
            "apt-get",
            f"""case "$*" in
              *" update") echo "{warning}" >&2; exit 100;;  # one of several sources is out of reach
            esac
            if [ "$(grep -c '^apt-get.* download' {self.calls})" -le {refused} ]; then
              echo "E: Unable to locate package libopenblas0-pthread" >&2
              exit 100
            fi
            for package in ${{*#*download}}; do touch "${{package}}_1.deb"; done""",
        )
        self.program(
            "dpkg-deb",
            f"""case "$2" in
              libopenblas*) file=openblas-pthread/libopenblas.so.0;;
              *) file=${{2%%[0-9]*}}.so;;
            esac
            file=$3/usr/lib/{architecture}/$file
            mkdir -p "${{file%/*}}" && touch "$file" """,
        )

    def fetch(self):
        """Run the script, which must exit with 0; return its lines and the recorded calls."""
        run = subprocess.run(
            [shutil.which("bash"), SCRIPT, self.environment.name],
            cwd=self.environment.parent, env={**os.environ, "PATH": str(self.bin)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (run.returncode, run.stderr) == (0, "")
        assert not list(self.environment.glob("openblas.*"))  # no partial result is left
        return run.stdout.splitlines(), [call for call in self.calls.read_text().splitlines() if call != "uname -s"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "runtime"),
    [("x86_64-linux-gnu", ["libgfortran5", "libquadmath0"]), ("aarch64-linux-gnu", ["libgfortran5"])],
)
def test_debian_fetches_it_with_the_runtime_that_the_architecture_needs(machine, architecture, runtime):
    machine.debian(architecture, runtime)
    lines, calls = machine.fetch()
    assert lines == ["fetching OpenBLAS into environment/openblas"]
    (download,) = [call for call in calls if call.startswith("apt-get")]
    assert download.endswith(" ".join(["download", "libopenblas0-pthread", *runtime]))
    assert (machine.environment / FETCHED.format(architecture)).exists()
    for name in runtime:
        assert (machine.environment / f"openblas/usr/lib/{architecture}" / f"{name[:-1]}.so").exists()
    assert machine.fetch() == ([], calls)  # it is already there


def test_own_package_lists_help_if_those_of_the_system_are_empty_or_old(machine):
    machine.debian(refused=1)
    lines, calls = machine.fetch()
    assert lines == ["fetching OpenBLAS into environment/openblas"]
    first, update, second = [call for call in calls if call.startswith("apt-get")]
    private = f"Dir::State::Lists={machine.environment}/openblas."
    assert private not in first
    assert private in update
    assert private in second
    assert (machine.environment / FETCHED.format("x86_64-linux-gnu")).exists()


@pytest.mark.parametrize(
    ("warning", "reason"),
    [("", "Unable to locate package"), ("W: Failed to fetch InRelease  no network", "InRelease  no network")],
)
def test_a_download_refused_twice_is_one_line(machine, warning, reason):
    machine.debian(refused=2, warning=warning)
    lines, _ = machine.fetch()
    assert len(lines) == 2
    assert lines[1].startswith("OpenBLAS is missing, without which MLX is about 10 times as slow")
    assert "sudo apt-get install libopenblas0-pthread" in lines[1]
    assert reason in lines[1]
    assert not (machine.environment / "openblas").exists()


def test_a_package_that_apt_does_not_know_is_one_line(machine):
    machine.debian()
    machine.program("apt-cache", "echo 'E: No packages found' >&2; exit 100")
    lines, calls = machine.fetch()
    assert len(lines) == 2
    assert "No packages found" in lines[1]
    assert not any("download" in call for call in calls)


def test_a_fetched_library_that_does_not_load_is_one_line(machine):
    machine.debian()
    machine.python_finds("nothing")
    lines, _ = machine.fetch()
    assert len(lines) == 2
    assert "does not load" in lines[1]


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("dnf", "dnf install openblas-threads"),
        ("pacman", "pacman -S openblas"),
        ("zypper", "zypper install libopenblas_pthreads0"),
        ("apk", "this system's package manager"),
    ],
)
def test_other_systems_are_told_the_package_to_install(machine, manager, command):
    machine.program(manager, "exit 1")
    (line,), calls = machine.fetch()
    assert line.startswith("OpenBLAS is missing")
    assert line.endswith(command)
    assert calls == []


def test_nothing_is_fetched_on_a_mac(machine):
    machine.debian()
    machine.program("uname", "echo Darwin")
    assert machine.fetch() == ([], [])
