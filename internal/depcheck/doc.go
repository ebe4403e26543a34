// Package depcheck holds the tests that keep the project's structure: which
// package may import which, that each has a comment, which modules are linked
// and under which licences.
package depcheck
