#!/bin/sh
# Builds the wheel from the source distribution and uses it as a user would: installed with the locked
# versions, in an empty environment and an empty folder, without the checkout.
#
#     sh constraints/wheel.sh BIN     # BIN: bin/ of the environment that builds the wheel
set -eu
cd "$(dirname "$0")/.."
bin=$(cd "$1" && pwd) lock=$(pwd)/constraints/dev.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf '== %s\n' "$1"; }

step "build"
rm -rf dist
"$bin/python" -m build --no-isolation --outdir dist . > "$work/build.log" 2>&1 || { tail "$work/build.log"; exit 1; }
wheel=$(ls "$(pwd)"/dist/*.whl)
printf '%s, %s kB\n' "$(basename "$wheel")" "$(du -k "$wheel" | cut -f1)"

step "install into an empty environment"
"${PYTHON:-python3}" -m venv "$work/environment"
"$work/environment/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
    --constraint "$lock" "$wheel"

mkdir "$work/empty"
cd "$work/empty"
use() { env -i HOME="$work" PATH="$work/environment/bin:/usr/bin:/bin" HF_HUB_OFFLINE=1 "$@"; }

step "interp babel"
use interp babel | head -n 3
step "python: load the model and every public name"
use EAGER_IMPORT=1 python -c '
import interp, pathlib, sys
assert sys.prefix in interp.__file__, interp.__file__
print(interp.load("babel"), len(interp.__all__), "names")'

step "a type checker sees the annotations and finds a mistake"
cat > right.py << 'EOF'
import interp

model = interp.load("babel")
layers: int = model.n_layers
EOF
cat > wrong.py << 'EOF'
import interp

layers: str = interp.load("babel").n_layers
EOF
check() { "$bin/basedpyright" --level error --pythonpath "$work/environment/bin/python" "$1"; }
check right.py
if check wrong.py > wrong.log; then
    echo "The type checker missed a mistake: is py.typed in the wheel?"
    exit 1
fi
grep -q '"int" is not assignable to "str"' wrong.log || { cat wrong.log; exit 1; }

step "interp demo"
use interp demo --out demo > demo.log 2> demo.err || { tail demo.log demo.err; exit 1; }
tail -n 4 demo.log
# A true warning of ours: few steps are too few for the first layer. Any other would be one of other packages.
expected='^Warning: Attributions of babel do not add up: the values of layer'
if tr '\r' '\n' < demo.err | grep 'Warning\|deprecated' | grep -v "$expected"; then
    echo "The demo shows other warnings than the one expected."
    exit 1
fi
