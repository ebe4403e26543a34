package faults

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/strake-build/strake/internal/testbed"
)

func TestMain(m *testing.M) {
	launchIfAsked()
	os.Exit(testbed.Main(m))
}

// fault is something that goes wrong, at several points of what strake does.
type fault struct {
	name string
	// outcome says what must come of it, besides what must be true after every
	// fault.
	outcome string
	// points are where it happens. They may depend on how much there is to
	// disturb, which is counted by l.
	points func(l *lab) []point
	// waits: only all points are tried, as it takes half a minute to find out
	// about any of them.
	waits bool
}

// point is one of the points at which a fault happens.
type point struct {
	name string
	// run makes it happen. What must be true after it is looked at then, unless
	// the point says that it has done so.
	run func(b *bed)
}

// faults is all there is.
func faults() []fault {
	return slices.Concat(killFaults(), errorFaults(), signalFaults(), diskFaults(), damageFaults(), sharingFaults(),
		pullFaults(), pushFaults(), remoteCacheFaults(), stepFaults(), contextFaults(), clockFaults(), serveFaults())
}

// allPoints is set by `make faults`.
const allPoints = "STRAKE_FAULTS"

// TestFaults runs the faults: all points of them if $STRAKE_FAULTS is "all", else
// a sample.
func TestFaults(t *testing.T) {
	testbed.NeedRoot(t)
	l := newLab(t)
	all := faults()
	names := map[string]bool{}
	for _, f := range all {
		if names[f.name] || f.outcome == "" {
			t.Fatalf("%s: is there already, or says no outcome", f.name)
		}
		names[f.name] = true
	}
	var there, ran atomic.Int64
	t.Run("fault", func(t *testing.T) {
		for _, f := range all {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				points := f.points(l.at(t))
				if len(points) == 0 {
					t.Fatal("there is no point at which it could happen")
				}
				there.Add(int64(len(points)))
				if os.Getenv(allPoints) != "all" {
					if f.waits {
						return
					}
					points = spread(points, 1)
				}
				for _, p := range points {
					t.Run(p.name, func(t *testing.T) {
						t.Parallel()
						ran.Add(1)
						b := newBed(t, l)
						p.run(b)
						b.verify()
					})
				}
			})
		}
	})
	t.Logf("%d faults; of their %d points %d were tried", len(all), there.Load(), ran.Load())
}

// spread chooses n elements that lie evenly in list.
func spread[T any](list []T, n int) []T {
	if len(list) <= n {
		return list
	}
	var chosen []T
	for i := range n {
		chosen = append(chosen, list[(2*i+1)*len(list)/(2*n)])
	}
	return chosen
}

// lab is what all points share: they only read it.
type lab struct {
	*testing.T
	root *testing.T // that of all faults
	// host is a registry that has the image base.
	host, base string
	// files is the address of a server that has the file "file".
	files string
	// context has build files: Dockerfile makes the image that is compared, the
	// others are for phases.
	context string
	// want is the digest of the image that an undisturbed build makes, and size
	// what the store takes then, in bytes.
	want string
	size int64

	mu     *sync.Mutex
	stores map[string]func() string // by phase: a store that was prepared for it
	counts map[string]func() int    // by phase and class: how many calls it makes
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, root: t, mu: &sync.Mutex{}, stores: map[string]func() string{}, counts: map[string]func() int{}}
	l.host = testbed.NewRegistry(t)
	l.base = basis(t, l.host)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprint(w, strings.Repeat("fetched\n", 1000))
	}))
	t.Cleanup(s.Close)
	l.files = s.URL
	l.context = testbed.Write(t, buildFiles(l.base, s.URL+"/file"))
	b := newBed(t, l)
	b.ok("build", "-t", b.image, "--push", l.context)
	l.want = testbed.DigestOf(t, b.image)
	l.size = diskUsage(b.s.Root)
	b.verify()
	return l
}

// at is the lab for another test.
func (l *lab) at(t *testing.T) *lab {
	m := *l
	m.T = t
	return &m
}

// basis pushes an image of two layers: busybox, and some files.
func basis(t *testing.T, host string) string {
	img := testbed.Pulled(t, testbed.Busybox(t, host))
	return testbed.PushLayer(t, host+"/base:latest", img, func(tw *tar.Writer) error {
		var errs []error
		for i := range 20 {
			errs = append(errs, testbed.TarFile(tw, fmt.Sprintf("usr/share/file%d", i), 0o644, []byte(strings.Repeat(fmt.Sprintln("line", i), 2000))))
		}
		errs = append(errs, testbed.TarFile(tw, ".wh.root", 0o644, nil))
		return errors.Join(errs...)
	})
}

// buildFiles are a context and build files with steps of every kind.
func buildFiles(base, url string) map[string]string {
	files := testbed.BuildFiles(base)
	files["Dockerfile"] += "ADD " + url + " /fetched\n" +
		"USER root\nRUN --mount=type=cache,target=/cache echo x >> /cache/n && mkdir /made && for i in 1 2 3 4 5 6 7 8; do echo $i > /made/$i; done\n"
	files["unpack.Dockerfile"] = "FROM " + base + "\nRUN true\n"
	files["run.Dockerfile"] = "FROM " + base + `
RUN mkdir /d && for i in 1 2 3 4 5 6 7 8; do echo $i > /d/$i; done && ln /d/1 /d/one && ln -s 1 /d/link && rm -r /usr/share && mv /var /moved
RUN --mount=type=cache,target=/cache,id=other --mount=type=tmpfs,target=/scratch cp /d/2 /cache/2 && cp /cache/2 /scratch/2 && cp /scratch/2 /d/three
`
	files["copy.Dockerfile"] = "FROM " + base + "\nCOPY . /context/\nCOPY --from=" + base + " /usr/share /copied\nADD " + url + " /fetched\nRUN cat /context/a.txt /copied/file1 /fetched > /all\n"
	files["big"] = strings.Repeat("a line of a larger file\n", 20000)
	return files
}

// lazily returns make's result, which is made once for each name.
func lazily[T any](l *lab, of map[string]func() T, name string, make func() T) T {
	l.mu.Lock()
	if of[name] == nil {
		of[name] = sync.OnceValue(make)
	}
	get := of[name]
	l.mu.Unlock()
	return get()
}

// copyTree copies a directory, hard links and attributes and all.
func copyTree(from, to string) error {
	out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp %s: %w: %s", from, err, out)
	}
	return nil
}

// relative is a path below dir as it is told.
func relative(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return path
	}
	return rel
}
