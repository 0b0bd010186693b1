# pytest; with GWSANDBOX_TEST_AGAIN set, what fails runs once more. scripts/test and scripts/vm call it.
python -m pytest "$@"
code=$?
if [ "$code" = 1 ] && [ -n "${GWSANDBOX_TEST_AGAIN:-}" ]; then
    echo "== once more, what failed"
    python -m pytest "$@" --last-failed --last-failed-no-failures none
    code=$?
fi
exit "$code"
