// Package remote shares results of steps between machines: over a registry, a
// directory, S3 or the cache of GitHub Actions.
//
// A cache holds small objects by name and blobs by digest. Each result of a
// step is an object of its own, named by the step's key: which layers it
// consists of, where the blobs of those are, and what the step was. It is
// written as soon as the step has ended, and never changed: there is no list of
// everything that two writers could take from each other. The digest of what a
// step copies out of another's result is an object, too (a memo), so that a
// graph whose results are all in the cache is keyed, and its image made, without
// fetching a single blob.
//
// A cache is asked when the store has no result. What it says is a claim: a
// layer's blob is fetched, and verified, when something first needs its files.
// If the blob turns out to be missing or damaged, the layer is forgotten and the
// step runs (see [Importer.Lose]). A cache that is dead or slow is passed over
// for the rest of the build, with one warning.
//
//	im := remote.NewImporter(backend, layers, warn)
//	rec, ok := im.Record(ctx, key)
//	ex := remote.NewExporter(ctx, backend, layers, packer, nil, remote.ExportOptions{})
//	ex.Add(rec, false, base, sources)
//	err := ex.Wait()
package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers/blob"
)

// ErrNotFound: the cache has no such object.
var ErrNotFound = errors.New("not in the cache")

// Backend is a place that holds objects and blobs. Its methods may be called at
// once, by any number of processes on any number of machines.
type Backend interface {
	// Get returns an object; ErrNotFound if there is none. Objects have at
	// most MaxObject bytes.
	Get(ctx context.Context, name string) ([]byte, error)
	// Has reports whether Get would return something.
	Has(ctx context.Context, name string) (bool, error)
	// Put stores an object after the blobs that it names, those that are not
	// there yet. Who finds the object finds the blobs. An object of the same
	// name is replaced, whole. damaged: blobs that are there are not to be
	// trusted, as what the object says now turned out to be wrong.
	Put(ctx context.Context, name string, object []byte, blobs []blob.Ref, damaged bool) error
	// Origin is where its blobs can be fetched later, by any process that has
	// the credentials: a repository, or a URL that [snapshot.Layer.Origins]
	// tells of.
	Origin() string
	// String names it in messages, as the flags do: "type=local,dest=dir".
	String() string
}

// MaxObject bounds objects, in bytes. Registries refuse manifests above 4 MiB.
const MaxObject = 3 << 20

// schema is part of all names. It changes when the meaning of objects does.
const schema = "strake1-"

// recordName names the record of a key with its layers.
func recordName(k cache.Key) string { return schema + "r-" + string(k) }

// identityName names the record of a key that tells only what its results are
// known by in memos.
func identityName(k cache.Key) string { return schema + "t-" + string(k) }

// BuildName names the record of the last build of a kind, which attributes tell
// from others. Unlike all else it is replaced by the next such build: nothing
// depends on it, it explains what changed.
func BuildName(attrs ...string) string {
	h := sha256.New()
	for _, a := range attrs {
		h.Write([]byte(strconv.Itoa(len(a)) + ":" + a))
	}
	return schema + "b-" + hex.EncodeToString(h.Sum(nil))
}

// memoName names a memo.
func memoName(tree, selector string) string {
	h := sha256.New()
	h.Write([]byte(strconv.Itoa(len(tree)) + ":" + tree + selector))
	return schema + "m-" + hex.EncodeToString(h.Sum(nil))
}
