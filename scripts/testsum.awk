# Reads `go test -json`: shows each package's result, the output of tests that failed or were skipped, and writes
# "PASSED FAILED SKIPPED" to the file named by the variable result. One event is one line, and quotes inside a value are
# escaped, so that a key's text cannot appear within a value.

function field(name,    at, rest, end) {
	at = index($0, "\"" name "\":\"")
	if (!at)
		return ""
	rest = substr($0, at + length(name) + 4)
	end = match(rest, /([^\\]|^)(\\\\)*"/)
	return substr(rest, 1, end + RLENGTH - 2)
}

function text(s) {
	gsub(/\\\\/, "\001", s)
	gsub(/\\n/, "\n", s)
	gsub(/\\t/, "\t", s)
	gsub(/\\r/, "", s)
	gsub(/\\"/, "\"", s)
	gsub(/\\u003c/, "<", s)
	gsub(/\\u003e/, ">", s)
	gsub(/\\u0026/, "\\&", s)
	gsub("\001", "\\", s)
	return s
}

!/^\{/ { print; next } # what the go command itself says

{
	action = field("Action"); package = field("Package"); test = field("Test")
	key = package " " test
}

action == "build-output" { printf "%s", text(field("Output")) }

action == "output" && !test {
	line = text(field("Output"))
	if (line != "PASS\n" && line !~ /no test files/)
		printf "%s", line
}
action == "output" && test { kept[key] = kept[key] text(field("Output")) }

action == "pass" && test { passed++; delete kept[key] }
action == "skip" && test { skipped++; printf "%s", kept[key] }
action == "fail" && test { failed++; in_package[package]++; printf "%s", kept[key] }
# A package can fail without a test that does: it does not build, or its TestMain says so.
action == "fail" && !test && !in_package[package] { failed++ }

END {
	print passed + 0, failed + 0, skipped + 0 > result
	exit failed > 0
}
