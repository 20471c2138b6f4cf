#!/usr/bin/env bash
# Lint, types and tests, in .venv.
#
#   bash tools/test.sh                  everything
#   bash tools/test.sh --fast           without the tests marked slow
#   bash tools/test.sh -k contract      further arguments go to pytest
#
# Tests that need weights or clips skip when these are not there; PERSAM_REQUIRE=weights,davis makes
# that a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

selection=()
if [ "${1-}" = --fast ]; then
    selection=(-m "not slow")
    shift
fi
ensure_environment test

failed=()
check() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}
check "ruff check" "$BIN/python" -m ruff check .
check "ruff format" "$BIN/python" -m ruff format --check .
check "mypy" "$BIN/python" -m mypy
check "pytest" "$BIN/python" -m pytest ${selection[@]+"${selection[@]}"} "$@"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
