#!/usr/bin/env bash
# What the compiler made of the kernels: registers and spills of each, per architecture, and whether the hot ones use the instructions that
# they are written for. Needs nvcc and cuobjdump (on PATH, or NVCC and CUOBJDUMP), no GPU. Exits 1 if
#  * a kernel spills or keeps arrays in local memory (but those in $may_spill);
#  * ptxas says that products of a warpgroup wait for each other (C7510 .. C7519), or that it ignored a setmaxnreg (C7508);
#  * HGMMA 64x256x16, UTMALDG, LDGSTS, LDSM or HMMA are missing where they belong.
# Usage: kernels/check_sass.sh [ARCH ..], default 80 86 89 90a.
set -u
cd "$(dirname "$0")"
nvcc=${NVCC:-nvcc}
cuobjdump=${CUOBJDUMP:-cuobjdump}
# measure_f32: 12 bytes on sm_86 and sm_89.
may_spill=" measure_f32 "
for tool in "$nvcc" "$cuobjdump"; do
    if ! command -v "$tool" >/dev/null; then
        echo "check_sass: $tool is not there; put a CUDA 13 toolkit's bin folder on PATH, or set NVCC and CUOBJDUMP"
        exit 3
    fi
done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0
complain() {
    echo "FAILED: $*"
    failed=1
}

# Counts lines of a kernel's SASS that match.
count() {
    awk -v kernel="$2" '/Function : /{on = $3 == kernel} on' "$out/$1.sass" | grep -cE "$3"
}
want() {
    local n
    n=$(count "$1" "$2" "$3")
    echo "  $2: $n x $3"
    [ "$n" -gt 0 ] || complain "sm_$1: $2 has no $3"
}

archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(80 86 89 90a)
for arch in "${archs[@]}"; do
    if ! "$nvcc" -O3 -std=c++17 -I. -gencode="arch=compute_$arch,code=sm_$arch" -Xptxas -v -cubin -o "$out/$arch.cubin" all.cu >"$out/$arch.log" 2>&1; then
        cat "$out/$arch.log"
        complain "sm_$arch: does not compile"
        continue
    fi
    "$cuobjdump" --dump-sass "$out/$arch.cubin" >"$out/$arch.sass"
    echo "sm_$arch: kernel, registers, bytes of stack, spill stores, spill loads, instructions"
    awk '/Compiling entry function/{split($0, part, "\x27"); name = part[2]}
         /bytes stack frame/{stack = $1; stores = $5; loads = $9}
         /Used [0-9]+ registers/{for (i = 1; i < NF; i++) if ($i == "Used") print name, $(i + 1), stack, stores, loads}' "$out/$arch.log" |
        sort >"$out/$arch.table"
    while read -r name registers stack stores loads; do
        printf '  %-28s %4d %6d %6d %6d %7d\n' "$name" "$registers" "$stack" "$stores" "$loads" "$(count "$arch" "$name" '/\*[0-9a-f]{4,5}\*/ ')"
        case "$may_spill" in *" $name "*) continue ;; esac
        [ "$stack" = 0 ] && [ "$stores" = 0 ] && [ "$loads" = 0 ] || complain "sm_$arch: $name spills, or has an array in local memory"
    done <"$out/$arch.table"
    if grep -E 'C75(08|1[0-9])' "$out/$arch.log"; then
        complain "sm_$arch: see above"
    fi
    for kernel in encode_ampere encode_ampere_small; do
        want "$arch" "$kernel" 'LDGSTS\.E.*\.128'
        want "$arch" "$kernel" 'LDSM\.16\.M88\.4'
        want "$arch" "$kernel" 'HMMA\.16816\.F32\.BF16'
    done
    if [ "$arch" = 90a ]; then
        for kernel in encode_hopper encode_hopper_pair; do
            want "$arch" "$kernel" 'HGMMA\.64x256x16\.F32\.BF16'
            want "$arch" "$kernel" 'UTMALDG\.2D'
        done
        want "$arch" encode_hopper_pair 'UTMALDG\.2D\.MULTICAST'
    fi
done
[ $failed = 0 ] && echo "what the compiler made of the kernels is as it should be"
exit $failed
