#!/bin/sh
# Makes the environment FOLDER, or brings it up to date, from the lock LOCK:
#
#     sh constraints/install.sh FOLDER LOCK
#
# What is installed is what the lock says, and this project, in place. PYTHON names the interpreter.
# The lock is copied to FOLDER/lock.txt when all of it is there: an environment with this file is a
# locked one, and one made from another lock is begun anew.
#
# An environment that `make gpu` made has FOLDER/unlocked: it only gets what is missing.
set -eu
folder=$1 lock=$2
python=${PYTHON:-python3}
megabytes=${NEEDED_MB:-4000} # 2,300 when finished, and the wheels while they are unpacked
log=$folder/install.log

refuse() {
    printf '%s\n' "$1" >&2
    exit 2
}

command -v "$python" > /dev/null || refuse \
    "There is no $python here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3.11."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || refuse \
    "$python does not run: name a Python 3.11 or newer with PYTHON=/path/to/python3.11."
case $version in
    [12].* | 3.? | 3.10) refuse \
        "$python is Python $version, and 3.11 or newer is needed: name one with PYTHON=/path/to/python3.11." ;;
esac

if [ -f "$folder/lock.txt" ] && ! cmp -s "$lock" "$folder/lock.txt"; then
    rm -rf "$folder"
fi
mkdir -p "$folder" 2> /dev/null || refuse "$folder cannot be made: is the disk full, or not yours to write to?"
if [ ! -f "$folder/lock.txt" ]; then
    free=$(df -Pm "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$megabytes" ] || refuse \
        "$(pwd)/$folder has room for $free MB, and an environment needs $megabytes MB: make room, and start again."
fi

failed() {
    if grep -qE 'No space left|Disk quota' "$log"; then
        refuse "The disk is full: make room, and start again; what is installed so far is kept."
    elif grep -qE 'ensurepip' "$log"; then
        refuse "$python cannot make environments: install its venv (on Debian and Ubuntu the package python3-venv)."
    elif grep -qE 'from versions: none|NewConnectionError|NameResolution|ConnectTimeout|ReadTimeout|ProxyError|Connection refused|SSLError' "$log"; then
        refuse "Packages cannot be fetched: check the network, and start again; what is installed so far is kept."
    fi
    tail -n 3 "$log" >&2
    refuse "The installation failed: $log has all of it."
}

pip() {
    env -u PIP_CONSTRAINT "$folder/bin/python" -m pip --disable-pip-version-check "$@" > "$log" 2>&1 || failed
}

# An interrupted installation goes on where it was.
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder" > "$log" 2>&1 || failed
if [ -f "$folder/unlocked" ]; then
    pip install --editable '.[dev]'
    exit
fi
printf 'Installing into %s with Python %s, from %s: a few minutes.\n' "$folder" "$version" "$lock"
pip install --no-compile --requirement "$lock" # what is used is compiled when it is
pip install --no-deps --no-build-isolation --editable .
cp "$lock" "$folder/lock.txt"
