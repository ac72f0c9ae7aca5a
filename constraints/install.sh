#!/bin/sh
# Creates the environment FOLDER from the lock LOCK, or updates it:
#
#     sh constraints/install.sh FOLDER LOCK [BASE]
#
# It installs the versions in the lock, and this project in editable mode. PYTHON names the
# interpreter. With BASE, another environment of this script, FOLDER gets only the packages that
# BASE lacks or has in another version, and imports the rest from it. When everything is installed, the lock is copied to FOLDER/lock.txt, which marks the
# environment as locked. An environment made from another lock is deleted and made again.
#
# An environment made by `make gpu` has FOLDER/unlocked: only missing packages are added to it.
set -eu
folder=$1 lock=$2 base=${3:-}
python=${PYTHON:-python3}
megabytes=${NEEDED_MB:-4000} # 2,300 when finished, plus the wheels while pip unpacks them
if [ -n "$base" ]; then python=$base/bin/python megabytes=${NEEDED_MB:-1000}; fi
log=$folder/install.log

refuse() {
    printf '%s\n' "$1" >&2
    exit 2
}

command -v "$python" > /dev/null || refuse \
    "$python is not installed: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3.11."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || refuse \
    "$python does not run: name a Python 3.11 or newer with PYTHON=/path/to/python3.11."
case $version in
    [12].* | 3.? | 3.10) refuse \
        "$python is Python $version, but 3.11 or newer is needed: name one with PYTHON=/path/to/python3.11." ;;
esac

if [ -f "$folder/lock.txt" ] && ! cmp -s "$lock" "$folder/lock.txt"; then
    rm -rf "$folder"
fi
mkdir -p "$folder" 2> /dev/null || refuse "$folder cannot be created: check free space and permissions."
if [ ! -f "$folder/lock.txt" ]; then
    free=$(df -Pm "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$megabytes" ] || refuse \
        "$(pwd)/$folder has room for $free MB, but an environment needs $megabytes MB: free some space and try again."
fi

failed() {
    if grep -qE 'No space left|Disk quota' "$log"; then
        refuse "The disk is full: free some space and try again; the installation resumes where it stopped."
    elif grep -qE 'ensurepip' "$log"; then
        refuse "$python cannot create environments: install venv (on Debian and Ubuntu, the package python3-venv)."
    elif grep -qE 'from versions: none|NewConnectionError|NameResolution|ConnectTimeout|ReadTimeout|ProxyError|Connection refused|SSLError' "$log"; then
        refuse "Packages cannot be downloaded: check the network and try again; the installation resumes where it stopped."
    fi
    tail -n 3 "$log" >&2
    refuse "The installation failed: see $log."
}

pip() {
    env -u PIP_CONSTRAINT "$folder/bin/python" -m pip --disable-pip-version-check "$@" > "$log" 2>&1 || failed
}

# An interrupted installation resumes from here.
[ -x "$folder/bin/python" ] || "$python" -m venv ${base:+--without-pip} "$folder" > "$log" 2>&1 || failed
if [ -n "$base" ]; then
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$base/bin/python" -c "$packages" > "$("$folder/bin/python" -c "$packages")/base.pth"
fi
if [ -f "$folder/unlocked" ]; then
    pip install --editable '.[dev]'
    exit
fi
printf 'Installing into %s with Python %s, from %s: a few minutes.\n' "$folder" "$version" "$lock"
pip install --no-compile --requirement "$lock" # modules are compiled on first import
pip install --no-deps --no-build-isolation --editable .
cp "$lock" "$folder/lock.txt"
