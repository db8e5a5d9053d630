#!/usr/bin/env bash
# Checks the fused encodes in the simulator, no GPU and no toolkit: `check_encode.sh` (a minute), `check_encode.sh all` (every order, the
# bring-up variants, the sanitizers: ten minutes).
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cxx=${CXX:-g++}
check() {
    local name=$1 mode=$2
    shift 2
    echo "== $name"
    "$cxx" -std=c++17 -I. -Wall -Wextra -Wno-psabi "$@" sim/check_encode.cpp -o "$out/$name"
    "$out/$name" "$mode"
}
if [ "${1:-quick}" = all ]; then
    check scores quick -O2 -DBRING_UP=1
    check lists quick -O2 -DBRING_UP=2
    check sanitized quick -O1 -g -fsanitize=address,undefined
    check encode all -O2
else
    check encode quick -O2
fi
