// Package testbed is what tests of whole strake processes share: the real
// program, stores for it, a registry with a small base image, and looks at what
// was left behind.
package testbed
