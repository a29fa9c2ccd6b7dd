#!/usr/bin/env bash
# Carry pyro_vae to a GPU machine that has torch and can fetch nothing: wheels of what it lacks, and
# MNIST where DATA names a folder that has it. Then, on that machine, in the same folder:
#     bash benchmarks/gpu_pack.sh run [arguments of benchmarks.gpu_checks]
# Usage here: bash benchmarks/gpu_pack.sh [DATA]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = run ]; then
    shift
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .gpu/*.whl
    cp -r benchmarks tests "$site"
    [ ! -d .gpu/data ] || export PYRO_VAE_DATA="$PWD/.gpu/data"
    # not the checkout's own folder, which has no pyro_vae.models
    here=$PWD && cd "$site" && PYTHONPATH="$site" python3 -P -m benchmarks.gpu_checks \
        --out "${OUT:-$here/runs/bench}/gpu_checks.json" "$@"
    exit
fi

exclude=$(git rev-parse --git-path info/exclude)
grep -qx '/.gpu/' "$exclude" 2>/dev/null || echo /.gpu/ >>"$exclude"
rm -rf .gpu && mkdir .gpu
python3 -m pip wheel -q --no-deps --wheel-dir .gpu .
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --dest .gpu \
    pyro-ppl pyro-api tyro docstring-parser typeguard tomli-w zuko \
    'arviz<1' xarray-einstats h5netcdf platformdirs
[ -z "${1:-}" ] || { mkdir -p .gpu/data && cp -r "$1"/MNIST .gpu/data/; }
du -sh .gpu
