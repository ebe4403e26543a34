package faults

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/strake-build/strake/internal/testbed"
)

// kinds are the files of a store, by what they are. A file is of the first kind
// that its path matches.
var kinds = []struct {
	name string
	path *regexp.Regexp
}{
	{"version", regexp.MustCompile(`^version$`)},
	{"layer.json", regexp.MustCompile(`^layers/\w+/layer\.json$`)},
	{"recipe", regexp.MustCompile(`^layers/\w+/recipe$`)},
	{"digests", regexp.MustCompile(`^layers/\w+/digests$`)},
	{"blob", regexp.MustCompile(`^blobs/sha256/`)},
	{"image name", regexp.MustCompile(`^images/names/`)},
	{"image", regexp.MustCompile(`^images/ids/`)},
	{"archive", regexp.MustCompile(`^images/archives/`)},
	{"cache log", regexp.MustCompile(`^cache/log$`)},
	{"cache snapshot", regexp.MustCompile(`^cache/snapshot$`)},
	{"cache lock", regexp.MustCompile(`^cache/lock$`)},
	{"index", regexp.MustCompile(`^index/index$`)},
	{"index log", regexp.MustCompile(`^index/index\.log$`)},
	{"segment", regexp.MustCompile(`^segments/`)},
	{"cache mount", regexp.MustCompile(`^cachemounts/\w+/meta\.json$`)},
	{"content of a cache mount", regexp.MustCompile(`^cachemounts/\w+/fs/`)},
	{"http memo", regexp.MustCompile(`^http/\w+\.json$`)},
	{"fetched file", regexp.MustCompile(`^http/files/`)},
	{"record of a build", regexp.MustCompile(`^builds/[^/]+/\w+\.json$`)},
	{"log of a build", regexp.MustCompile(`^builds/[^/]+/.*\.(jsonl|log).*$`)},
	{"list of files", regexp.MustCompile(`^builds/[^/]+/files-`)},
	{"builds", regexp.MustCompile(`^builds/`)},
	{"network", regexp.MustCompile(`^net/`)},
	{"lock", regexp.MustCompile(`^(locks/|index/lock$)`)},
	{"time of pruning", regexp.MustCompile(`^gc`)},
}

// layerContent are files that are used as they are.
var layerContent = regexp.MustCompile(`^layers/\w+/fs/`)

// furnish prepares a store that has files of all kinds.
func furnish(l *lab) [][]string {
	return [][]string{
		{"pull", l.base},
		{"build", "-f", file(l, "unpack"), l.context},
		{"build", "-f", file(l, "copy"), "-t", "copy", l.context},
		{"build", "-t", "app", l.context},
		{"build", "-t", l.host + "/furnished", "--push", l.context},
		{"build", "-o", "type=docker,dest=/dev/null", l.context},
		{"build", "-t", "again", l.context},
	}
}

// furnished is the path of a store that has files of all kinds.
func (l *lab) furnished() string {
	return lazily(l, l.stores, "furnished", func() string {
		b := l.prepared()
		for _, args := range furnish(l) {
			b.ok(args...)
		}
		// What is hashed in the instant of its last change is not remembered.
		b.ok("build", "-o", "type=oci,dest="+b.out("image.tar"), l.context)
		// This prunes nothing, but makes a snapshot of the log.
		b.s.Env = append(b.s.Env, "STRAKE_GC=max-used-space=1TB")
		b.ok("build", "-t", "again", l.context)
		b.ok("build", "-f", file(l, "run"), l.context)
		b.ok("prune", "--force", "--filter", "type=cachemount", "--filter", "id=none")
		return b.s.Root
	})
}

// stored are the files of the furnished store, by kind; at most n of each.
func (l *lab) stored(n int) map[string][]string {
	found := map[string][]string{}
	root := l.furnished()
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		name := relative(root, p)
		if err != nil || !d.Type().IsRegular() || layerContent.MatchString(name) {
			return nil
		}
		for _, k := range kinds {
			if k.path.MatchString(name) {
				found[k.name] = append(found[k.name], name)
				return nil
			}
		}
		l.Errorf("%s is of no kind", name)
		return nil
	})
	for kind, list := range found {
		found[kind] = spread(list, n)
	}
	return found
}

// damaged are points at which files of all kinds are changed.
func damaged(n int, change func(b *bed, path string) error) func(l *lab) []point {
	return func(l *lab) []point {
		var points []point
		stored := l.stored(n)
		for _, kind := range slices.Sorted(keys(stored)) {
			for i, name := range stored[kind] {
				points = append(points, point{fmt.Sprintf("%s/%d", kind, i), func(b *bed) {
					b.copyStore(l.furnished())
					if err := change(b, filepath.Join(b.s.Root, name)); err != nil {
						b.Fatal(err)
					}
					b.useAll()
				}})
			}
		}
		return points
	}
}

func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// useAll gives commands that use everything in the furnished store. They work,
// whatever of it is damaged.
func (b *bed) useAll() {
	b.Helper()
	b.found = true
	b.ok("build", "-t", b.image, "--push", b.lab.context)
	if got := testbed.DigestOf(b.T, b.image); got != b.lab.want {
		b.Errorf("the next build made %s, an undisturbed one makes %s", got, b.lab.want)
	}
	for _, args := range [][]string{
		{"images"}, {"du"}, {"why"},
		{"build", "-t", "app", b.lab.context},
		{"build", "-t", "copy", "-f", file(b.lab, "copy"), b.lab.context},
		{"save", "-o", b.out("saved.tar"), "app", "copy"},
		{"build", "-o", "type=oci,dest=" + b.out("image.tar"), b.lab.context},
	} {
		b.ok(args...)
	}
}

// damageFaults damage what is stored.
func damageFaults() []fault {
	const outcome = "it is found before it is used, and made again by the same command"
	flip := func(b *bed, path string) error {
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			return err
		}
		at := rand.IntN(len(data) * 8)
		b.Logf("bit %d of %d bytes", at, len(data))
		data[at/8] ^= 1 << (at % 8)
		return rewrite(path, data)
	}
	return []fault{
		{name: "stored file that is cut short", outcome: outcome, points: damaged(3, func(b *bed, path string) error {
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, fi.Size()/2)
		})},
		{name: "stored file that is empty", outcome: outcome, points: damaged(3, func(b *bed, path string) error { return os.Truncate(path, 0) })},
		{name: "stored file of zeros", outcome: outcome, points: damaged(3, func(b *bed, path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return rewrite(path, make([]byte, len(data)))
		})},
		{name: "stored file of random bytes", outcome: outcome, points: damaged(3, func(b *bed, path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			return rewrite(path, data)
		})},
		{name: "stored file that is a directory", outcome: outcome, points: damaged(2, func(b *bed, path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o755)
		})},
		{name: "stored file that is missing", outcome: outcome, points: damaged(3, func(b *bed, path string) error { return os.Remove(path) })},
		{name: "stored file that is longer", outcome: outcome, points: damaged(2, func(b *bed, path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return rewrite(path, append(data, "\x00what is this"...))
		})},
		{name: "bit flip in a stored file", outcome: outcome, points: func(l *lab) []point {
			var points []point
			for i := range 4 {
				for _, p := range damaged(3, flip)(l) {
					points = append(points, point{fmt.Sprintf("%s/%d", p.name, i), p.run})
				}
			}
			return points
		}},
		{name: "bit flip in a layer's file", outcome: "check --read-data finds it if the layer has been packed, and repair removes it", points: contentFlips},
		{name: "bit flips in all blobs at once", outcome: "found, and the blobs made again, in one command", points: allBlobs},
		{name: "stored file of a newer version", outcome: "the store is refused, or what can't be read is a miss", points: newerFiles},
	}
}

// rewrite changes a file in its place.
func rewrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Close()
}

// contentFlips are points at files of layers that were made here and packed.
func contentFlips(l *lab) []point {
	root := l.furnished()
	var names []string
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		name := relative(root, p)
		if err != nil || !d.Type().IsRegular() || !layerContent.MatchString(name) {
			return nil
		}
		id := strings.Split(name, "/")[1]
		about, err := os.ReadFile(filepath.Join(root, "layers", id, "layer.json"))
		if fi, ferr := d.Info(); err == nil && ferr == nil && fi.Size() > 0 && fi.Sys().(*syscall.Stat_t).Nlink == 1 &&
			bytes.Contains(about, []byte(`"sha256:`)) && !bytes.Contains(about, []byte(`"sha256:`+id)) {
			names = append(names, name)
		}
		return nil
	})
	var points []point
	for _, name := range spread(names, 20) {
		points = append(points, point{strings.ReplaceAll(name, "/", " "), func(b *bed) {
			b.copyStore(root)
			path := filepath.Join(b.s.Root, name)
			data, err := os.ReadFile(path)
			b.must(err)
			data[len(data)/2] ^= 4
			b.must(rewrite(path, data))
			if r := b.strake("check", "--read-data"); r.code != 1 || !strings.Contains(r.stdout, "layers/"+strings.Split(name, "/")[1]) {
				b.Errorf("check does not find it: %v", r)
			}
			b.ok("repair")
			b.useAll()
		}})
	}
	return points
}

// newerFiles are points at files that tell their version.
func newerFiles(l *lab) []point {
	change := func(name, was, is string, refused bool) point {
		return point{name, func(b *bed) {
			b.copyStore(l.furnished())
			for _, path := range l.stored(2)[name] {
				path = filepath.Join(b.s.Root, path)
				old, err := os.ReadFile(path)
				b.must(err)
				newer := bytes.Replace(old, []byte(was), []byte(is), 1)
				if bytes.Equal(old, newer) {
					b.Fatalf("%s does not begin with %q", path, was)
				}
				b.must(rewrite(path, newer))
				defer func() { b.must(rewrite(path, old)) }()
			}
			if !refused {
				b.useAll()
				return
			}
			for _, args := range [][]string{{"build", b.lab.context}, {"images"}, {"check"}, {"prune", "--force"}, {"du"}} {
				r := b.strake(args...)
				b.failed(r)
				if !strings.Contains(r.stderr, "newer") {
					b.Errorf("it does not say that the store is newer: %v", r)
				}
			}
		}}
	}
	return []point{
		change("version", "store 1", "store 2", true),
		change("cache log", "strakelg\x01", "strakelg\x02", false),
		change("cache snapshot", "strakesn\x01", "strakesn\x02", false),
		change("index", "strake-index-1", "strake-index-2", false),
		change("recipe", "strake recipe 1", "strake recipe 2", false),
	}
}

// allBlobs flips a bit in each blob of a store that has an image of many layers.
// What only a build can make again stays if there is none: the configuration.
func allBlobs(*lab) (list []point) {
	for name, again := range inOrder(map[string]func(b *bed, build []string) []string{
		"archive":        func(b *bed, build []string) []string { return append(build, "-o", "type=oci,dest="+b.out("after")) },
		"docker archive": func(b *bed, build []string) []string { return append(build, "-o", "type=docker,dest="+b.out("after")) },
		"build and push": func(b *bed, build []string) []string { return append(build, "--push") },
		"push":           func(b *bed, _ []string) []string { return []string{"push", b.image} },
		"save": func(b *bed, _ []string) []string {
			return []string{"save", "--format", "oci", "-o", b.out("after"), b.image}
		},
	}) {
		list = append(list, point{name, func(b *bed) {
			var df strings.Builder
			df.WriteString("FROM scratch\n")
			const layers = 50
			for i := range layers {
				fmt.Fprintf(&df, "COPY <<EOF /f%d\nlayer %d of %s\nEOF\n", i, i, b.image) // which no registry has
			}
			build := b.building(df.String(), "-t", b.image)
			b.ok(build...)
			b.ok("save", "--format", "oci", "-o", b.out("before"), b.image)
			blobs, err := filepath.Glob(filepath.Join(b.s.Root, "blobs/sha256/*"))
			b.must(err)
			if len(blobs) < layers {
				b.Fatalf("the store has %d blobs", len(blobs))
			}
			args := again(b, build)
			for _, p := range blobs {
				data, err := os.ReadFile(p)
				b.must(err)
				if args[0] == "build" || data[0] != '{' {
					b.must(rewrite(p, flip(data, len(data)/2)))
				}
			}
			b.ok(args...)
			b.allow(1 << 20)
		}})
	}
	return list
}
