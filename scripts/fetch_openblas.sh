#!/usr/bin/env bash
# Fetch OpenBLAS into a virtual environment on Debian and Ubuntu, as any user: fetch_openblas.sh ENVIRONMENT
#
# MLX's wheel for Linux contains the slow reference BLAS. mlx_rtx/support/openblas.py loads OpenBLAS in its place: the
# system's, or else the one that this script unpacks into ENVIRONMENT/openblas. If OpenBLAS cannot be fetched, the script
# prints how to install it and exits with 0.
set -euo pipefail

environment=$(cd "$1" && pwd)
loader=$(cd "$(dirname "$0")/.." && pwd)/mlx_rtx/support/openblas.py
package=libopenblas0-pthread

found() { # runs the loader itself; -P keeps the files next to it from shadowing Python's modules
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
  go_without "install it with this system's package manager"
fi

echo "fetching OpenBLAS into $1/openblas"
work=$(mktemp -d "$environment/openblas.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# without a network this takes a minute at most; if root runs it, apt's sandbox user could not write to this folder
options=(-q -o Acquire::Retries=0 -o Acquire::http::Timeout=5 -o Acquire::https::Timeout=5 -o APT::Sandbox::User=root)

# OpenBLAS and the Fortran runtime libraries it needs, which differ between releases; its other dependencies are part of
# every system
download() {
  local names
  rm -f ./*.deb
  names=$(apt-cache "${options[@]}" depends --recurse --important "$package" |
    grep -E "^($package|libgfortran|libquadmath)[^:]*$") || return
  # shellcheck disable=SC2086 # one word per package
  apt-get "${options[@]}" download $names
}

# the system's package lists may be outdated, or empty as in a container: then fetch our own, which needs no root
download_with_own_lists() {
  mkdir lists cache
  options+=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o Acquire::Languages=none)
  apt-get "${options[@]}" update || true # some of the lists may fail
  download
}

if ! (download || download_with_own_lists) >log 2>&1; then
  reason=$(grep -m 1 -E '^[EW]: Failed to fetch' log || grep -m 1 '^E: ' log) || true
  go_without "sudo apt-get install $package, or make setup once more (apt-get says: ${reason#?: })"
fi
for archive in *.deb; do
  dpkg-deb -x "$archive" unpacked
done
rm -rf "$environment/openblas"
mv unpacked "$environment/openblas"
found || go_without "the fetched library does not load; sudo apt-get install $package"
