# Sourced by the scripts here: makes .venv on first use, or after pyproject.toml or constraints.txt changed.
# A start that finds it up to date costs one checksum. Set PYTHON to choose the interpreter (3.11 or newer), and
# PRFAAS_LAB_ENV=emulation for all but the model (no torch), where `scripts/test --emulation` is what one wants.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1

kind=${PRFAAS_LAB_ENV:-full}
environment_mark() { (echo "$kind"; cat "$root/pyproject.toml" "$root/constraints.txt") | sha256sum | cut -d' ' -f1; }

environment_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "prfaas-lab: no Python 3.11 or newer found (apt install python3 python3-venv, or set PYTHON)" >&2
    return 1
}

# Shows that a long step is alive: one line that rewrites itself in a terminal, one every 15 s elsewhere.
environment_progress() {
    local pid=$1 log=$2 started=$SECONDS beat=15
    [ -t 2 ] && beat=1
    while kill -0 "$pid" 2>/dev/null; do
        if [ $(((SECONDS - started) % beat)) -eq 0 ]; then
            local step
            step=$(grep -oE '^ *(Collecting|Downloading|Processing|Installing|Building|Preparing) [^ ]+' "$log" | tail -n 1 || true)
            if [ -t 2 ]; then printf '\r\033[K  %3d s %.60s' $((SECONDS - started)) "${step:-starting}" >&2
            else printf '  %3d s %s\n' $((SECONDS - started)) "${step:-starting}" >&2; fi
        fi
        sleep 1
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

environment_install() {
    local python log=$root/.venv.log
    python=$(environment_python) || return 1
    echo "prfaas-lab: first use: making .venv ($kind; some minutes and up to 2 GB; log: .venv.log)" >&2
    (
        set -e
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        case $kind in
        full) "$venv/bin/pip" install -c "$root/constraints.txt" -e "$root[test]" ;;
        emulation)
            "$python" "$root/scripts/requirements.py" emulation |
                "$venv/bin/pip" install --no-compile -c "$root/constraints.txt" -r /dev/stdin
            "$venv/bin/pip" install --no-deps --no-build-isolation -e "$root"
            ;;
        *) echo "PRFAAS_LAB_ENV is '$kind': use full or emulation" && exit 1 ;;
        esac
    ) >"$log" 2>&1 &
    local pid=$!
    trap 'kill $pid 2>/dev/null; exit 130' INT TERM
    environment_progress "$pid" "$log"
    if ! wait "$pid"; then
        tail -n 15 "$log" >&2
        echo "prfaas-lab: the install failed (see above; the whole log: .venv.log). Mend it and run the same command again." >&2
        return 1
    fi
    trap - INT TERM
    environment_mark >"$venv/prfaas-lab.mark"
}

environment_ready() { [ "$(cat "$venv/prfaas-lab.mark" 2>/dev/null)" = "$(environment_mark)" ]; }

if ! environment_ready; then
    exec 9>"$root/.venv.lock"
    flock 9 # two first starts at once: the second waits, then finds it made
    environment_ready || environment_install || exit 1
    exec 9>&-
fi
