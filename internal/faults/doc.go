// Package faults breaks the real strake at work: it is killed at system calls of
// every kind, calls fail as on full, broken or vanished disks, files of the store
// are damaged, processes race and are interrupted, registries and steps misbehave.
// `make faults` runs all points of all faults as root, `go test` a sample.
//
// After each fault the same things must be true: the next command does what
// it should without anybody's help, the image that a build makes is the one that
// an undisturbed build makes, `strake check --read-data` finds nothing, no mount,
// process, cgroup, loop device, lock or temporary file is left, and the
// store takes no more space than it would have without the fault.
package faults
