# To be sourced, with `suite` set to what the lines begin with. Counts in `passed` and `failed`.

passed=0
failed=0

# test_case NAME COMMAND...: what a command prints is shown if it fails.
test_case() {
    local name=$1 log
    shift
    if log=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "$suite.$name passed"
    else
        failed=$((failed + 1))
        printf '%s\n%s.%s FAILED\n' "$log" "$suite" "$name"
    fi
}
