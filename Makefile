# make check is what a change must pass; the other targets are shortcuts.
.PHONY: build check test fuzz difffuzz gosec bench conformance hostile faults caches

build:
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o strake ./cmd/strake

check:
	./.ci/run

test:
	./scripts/test

# Every fuzz target for a short while.
fuzz:
	./scripts/fuzz 20s

# Contexts and Dockerfiles made at random, built by strake and BuildKit, whose
# images are compared: make difffuzz SEED=1 N=100
SEED ?= 1
N ?= 100
difffuzz: build
	go run ./conformance -strake ./strake difffuzz -seed $(SEED) -n $(N)

# Patterns of insecure code.
gosec:
	./scripts/gosec

bench:
	./bench/run

# Tests of others: BuildKit's suite against strake serve, and build files that
# BuildKit and strake build to the same images.
conformance: build
	go run ./conformance -strake ./strake

# Attacks on the real strake, made after public advisories.
hostile:
	CGO_ENABLED=0 go test -count=1 -v -run TestHostile ./internal/hostile

# Faults at all points: kills, failing disks, damage, races. As root; half an hour. Points wait more than they compute.
faults:
	CGO_ENABLED=0 STRAKE_FAULTS=all go test -count=1 -v -timeout 60m -parallel $$((3 * $$(nproc))) -run TestFaults ./internal/faults

# The tests of remote caches against BuildKit, and real servers of S3 and of Azure's storage.
caches:
	./scripts/caches
