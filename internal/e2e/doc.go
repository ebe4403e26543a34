// Package e2e tests what only several strake processes, or a long look at one,
// can show: stores shared and killed, images that are the same wherever they
// are made, real distributions as bases. What one command does is told by the
// scripts in testdata/script.
package e2e
