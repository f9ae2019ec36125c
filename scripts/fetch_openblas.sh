#!/usr/bin/env bash
# Fetch OpenBLAS into a virtual environment on Debian and Ubuntu, as any user: fetch_openblas.sh ENVIRONMENT
#
# MLX's wheel for Linux carries the reference BLAS. What is unpacked here into ENVIRONMENT/openblas is what
# mlx_rtx/support/openblas.py loads in its place where the system has no OpenBLAS of its own. Going without is no error:
# one line then says what is missing.
set -euo pipefail

environment=$(cd "$1" && pwd)
loader=$(cd "$(dirname "$0")/.." && pwd)/mlx_rtx/support/openblas.py
package=libopenblas0-pthread

found() { # asks what will load it; -P keeps the loader's neighbours from standing in for modules of Python
  "$environment/bin/python" -P "$loader"
}

go_without() {
  echo "OpenBLAS is missing, without which MLX is about 10 times as slow on a CPU: $1"
  exit 0
}

if [ "$(uname -s)" != Linux ] || found; then
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  if command -v dnf >/dev/null; then
    go_without "sudo dnf install openblas-threads"
  elif command -v pacman >/dev/null; then
    go_without "sudo pacman -S openblas"
  elif command -v zypper >/dev/null; then
    go_without "sudo zypper install libopenblas_pthreads0"
  fi
  go_without "install it by this system's package manager"
fi

echo "fetching OpenBLAS into $1/openblas"
work=$(mktemp -d "$environment/openblas.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# without a network this costs a minute at most; apt's own user, which root would download as, may not write here
options=(-q -o Acquire::Retries=0 -o Acquire::http::Timeout=5 -o Acquire::https::Timeout=5 -o APT::Sandbox::User=root)

# OpenBLAS and what it needs of the Fortran runtime, which differs between releases; all else is in any system
download() {
  local names
  rm -f ./*.deb
  names=$(apt-cache "${options[@]}" depends --recurse --important "$package" |
    grep -E "^($package|libgfortran|libquadmath)[^:]*$") || return
  # shellcheck disable=SC2086 # one word a package
  apt-get "${options[@]}" download $names
}

# the system's lists of packages may be old, or empty as in a container: then lists of our own, which need no root
download_by_own_lists() {
  mkdir lists cache
  options+=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o Acquire::Languages=none)
  apt-get "${options[@]}" update || true # one list of several may fail
  download
}

if ! (download || download_by_own_lists) >log 2>&1; then
  reason=$(grep -m 1 -E '^[EW]: Failed to fetch' log || grep -m 1 '^E: ' log) || true
  go_without "sudo apt-get install $package, or make setup once more (apt-get says: ${reason#?: })"
fi
for archive in *.deb; do
  dpkg-deb -x "$archive" unpacked
done
rm -rf "$environment/openblas"
mv unpacked "$environment/openblas"
found || go_without "what was fetched does not load; sudo apt-get install $package"
