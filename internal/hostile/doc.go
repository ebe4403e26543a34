// Package hostile attacks the real strake with what strangers may hand it: base
// images, archives, contexts, build files, git repositories, registries. Each
// case is made after an advisory of a program of the same kind where there is
// one, says what must come of it, and has a bound of memory and time. `make
// hostile` runs it as root.
//
// All cases are held to the same rules besides their own: the directory that
// stands for the host is as it was, nothing was made outside of the store,
// no output has control characters, a stack trace or the host's secret, no
// process took more memory or time than the case allows, and no mount, process
// or temporary file is left.
package hostile
