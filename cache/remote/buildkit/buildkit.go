// Package buildkit reads and writes the caches that BuildKit keeps in
// registries, images and directories, so that each finds what the other has
// built.
//
// BuildKit names a result by a record: the digest of what the step does, and
// for each of its inputs the records of what it may be. A step's inputs count
// by definition (the record of the step that made them, with a selector for the
// paths that are used) or by content (a record that is the digest of those
// paths). A step is found if one of its records has, for every input, a link
// that fits. A cache is a list of such records, those with results name their
// layers, and a manifest that has the layers as blobs.
//
// A [Graph] knows the steps of a plan by the same names. It derives from a step
// the operation that BuildKit's Dockerfile frontend makes of the same
// instruction, as far as its name depends on it. What it does not know how to
// name has no key, and is found in no cache.
//
// All of this is a claim until it is read: records name layers by digest, and
// blobs are verified by whoever fetches them. A record says nothing about keys of
// ours: it is followed from the key of a step that is wanted, never the other way,
// so that loops in it, or links that lead nowhere, are never walked.
package buildkit
