#!/bin/bash -eu
# Builds every fuzz target for OSS-Fuzz, which calls it in the root of the
# repository. A target is called by its package and its name, as names occur
# twice.
./scripts/fuzz list | while read -r dir name; do
	compile_native_go_fuzzer_v2 "github.com/strake-build/strake/$dir" "$name" "${dir//\//_}_$name" </dev/null
done
