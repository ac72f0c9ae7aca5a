#!/bin/sh
# Rewrites the locks with the newest versions that pyproject.toml allows: `make lock`.
#
#   dev.txt                   `make demo`, `make test`, `make check`
#   all.txt                   the same versions, and those of the other extras (Ray, lm-eval, JupyterLab)
#   transformer-lens-3.9.txt  as dev.txt, with the last TransformerLens that has HookedTransformer
#   docs.txt                  `make docs`: the group docs alone, without this project's requirements
#
# Each file serves Python 3.11 and newer on every system. torch is pinned by hand in torch.txt, to a release
# that has a CPU build. The dependencies of its GPU builds are left out: torch pins them itself.
set -eu
uv=${1:-uv}
cd "$(dirname "$0")"

compile() {
    lock=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --upgrade --no-annotate --no-header \
        --constraints torch.txt "$@" > "$lock.new"
    {
        echo "# Every package of an environment, pinned. Written by \`make lock\`: edit pyproject.toml, not this."
        grep -vE '^(nvidia-|cuda-|triton)' "$lock.new"
    } > "$lock"
    rm "$lock.new"
}

compile dev.txt ../pyproject.toml --extra dev
compile all.txt ../pyproject.toml --all-extras --constraints dev.txt
compile transformer-lens-3.9.txt ../pyproject.toml --extra dev transformer-lens-3.9.in
compile docs.txt --group ../pyproject.toml:docs
