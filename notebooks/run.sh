#!/usr/bin/env bash
# Executes the notebooks headless, in order, and fails where a cell does. Installs nothing: without jupyter or evcxr_jupyter it says so and skips.
#   notebooks/run.sh                 all of them; executed copies go to a temporary folder
#   notebooks/run.sh --save 02 04    only these, outputs written into the notebooks themselves
# What the cells make goes to notebooks/runs and is used again by the next run: remove it to begin anew.
set -eu
cd "$(dirname "$0")"
for tool in jupyter evcxr_jupyter; do
    if ! command -v "$tool" >/dev/null; then
        echo "skipped: no $tool here (notebooks/README.md says how to install it)"
        exit 0
    fi
done
if ! jupyter nbconvert --version >/dev/null 2>&1; then
    echo "skipped: jupyter has no nbconvert here (pip install nbconvert)"
    exit 0
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# The kernel's description for this run only, whatever is installed for the user.
JUPYTER_PATH=$out/jupyter evcxr_jupyter --install >/dev/null
export JUPYTER_PATH=$out/jupyter
# One folder for all kernels: the library is compiled once.
export EVCXR_TMPDIR=${EVCXR_TMPDIR:-$PWD/../target/evcxr}
mkdir -p "$EVCXR_TMPDIR"
# evcxr would fetch rust-src through rustup at each start; the notebooks do without it.
export RUSTUP_DIST_SERVER=http://127.0.0.1:9
where=(--output-dir "$out")
if [ "${1:-}" = --save ]; then
    where=(--inplace)
    shift
fi
for notebook in [0-9]*.ipynb; do
    if [ $# -gt 0 ] && [[ " $* " != *" ${notebook%%_*} "* ]]; then
        continue
    fi
    SECONDS=0
    jupyter nbconvert --log-level WARN --to notebook --execute --ExecutePreprocessor.timeout=3600 \
        --ExecutePreprocessor.record_timing=False "${where[@]}" "$notebook"
    done=$notebook
    [ "${where[0]}" = --inplace ] || done=$out/$notebook
    # What does not compile is an error; what fails at `?` is told on stderr, and the kernel goes on.
    if grep -q -e '"output_type": "error"' -e '"name": "stderr"' "$done"; then
        echo "$notebook: a cell failed" >&2
        exit 1
    fi
    echo "$notebook: ${SECONDS} s"
done
