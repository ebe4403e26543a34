package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
)

func newExporter(t *testing.T) *Exporter {
	t.Helper()
	root, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	rootless := os.Geteuid() != 0
	snaps, err := snapshot.Open(root, snapshot.Options{
		Driver: &copydir.Driver{UserXattr: rootless, RecordOwners: rootless}, UserXattr: rootless, RecordOwners: rootless,
	})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(root.Path("blobs"), blob.TempIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.OpenStore(root, blobs)
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.New(registry.Options{ConfigDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &Exporter{Packer: &image.Packer{Layers: snaps, Blobs: blobs}, Images: images, Layers: snaps, Registry: client}
}

// a file system with all kinds of entries.
var entries = []layers.Entry{
	{Path: "dir", Type: layers.Dir, Mode: 0o755},
	{Path: "dir/file", Type: layers.Regular, Mode: 0o640, Size: 4, Data: []byte("text"), Inline: true},
	{Path: "dir/link", Type: layers.Symlink, Mode: 0o777, Link: "/etc/passwd"},
	{Path: "escape", Type: layers.Symlink, Mode: 0o777, Link: "../.."},
	{Path: "fifo", Type: layers.Fifo, Mode: 0o600},
	{Path: "readonly", Type: layers.Dir, Mode: 0o555},
	{Path: "readonly/in", Type: layers.Regular, Mode: 0o444, Size: 1, Data: []byte("x"), Inline: true},
	{Path: "suid", Type: layers.Regular, Mode: 0o4755, Inline: true},
}

func (e *Exporter) tree(t *testing.T, es ...layers.Entry) Image {
	t.Helper()
	es = slices.Clone(es) // tests run in parallel
	for i := range es {
		es[i].UID, es[i].GID = os.Geteuid(), os.Getegid()
		es[i].ModTime = time.Unix(1_000_000_000, 0)
	}
	id, err := e.Layers.AddEntries(t.Context(), es, nil)
	if err != nil {
		t.Fatal(err)
	}
	img := Image{Tree: layers.Tree{id}, Target: plan.Target{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}}
	img.Target.Image.Platform = img.Target.Platform
	return img
}

// list describes what is in a directory.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := fi.Mode().String() + " " + rel
		if fi.Mode()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(p)
			line += " -> " + to
		} else if fi.ModTime().Unix() != layers.DefaultModTime.Unix() {
			line += " " + fi.ModTime().UTC().String()
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return out
}

func TestLocal(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries...)
	dest := filepath.Join(t.TempDir(), "new", "dir")
	t.Cleanup(func() { os.Chmod(filepath.Join(dest, "readonly"), 0o755) })
	for range 2 { // the second time over the first
		if _, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeLocal, Dest: dest}); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"-r--r--r-- readonly/in",
			"-rw-r----- dir/file",
			"-rwxr-xr-x suid", // nobody gets the user's rights
			"Lrwxrwxrwx dir/link -> /etc/passwd",
			"Lrwxrwxrwx escape -> ../..",
			"dr-xr-xr-x readonly",
			"drwxr-xr-x dir",
			"prw------- fifo",
		}
		if diff := cmp.Diff(want, list(t, dest)); diff != "" {
			t.Errorf("directory (-want +got):\n%s", diff)
		}
	}
}

// TestLocalStaysInside: symlinks that are at the destination already are
// replaced, not followed.
func TestLocalStaysInside(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries[:2]...)
	outside, dest := t.TempDir(), t.TempDir()
	for name, to := range map[string]string{"dir": outside, "escape": "/"} {
		if err := os.Symlink(to, filepath.Join(dest, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeLocal, Dest: dest}); err != nil {
		t.Fatal(err)
	}
	if l := list(t, outside); len(l) > 0 {
		t.Errorf("written outside: %q", l)
	}
	want := []string{"-rw-r----- dir/file", "Lrwxrwxrwx escape -> /", "drwxr-xr-x dir"}
	if diff := cmp.Diff(want, list(t, dest)); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
}

func TestLocalReplacesOtherTypes(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries[:2]...)
	dest := t.TempDir()
	// A file where a directory comes, a directory where a file comes.
	if err := os.WriteFile(filepath.Join(dest, "dir"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	img2 := e.tree(t, layers.Entry{Path: "x", Type: layers.Regular, Mode: 0o600, Inline: true})
	if err := os.MkdirAll(filepath.Join(dest, "x", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, i := range []Image{img, img2} {
		if _, err := e.Export(t.Context(), []Image{i}, Output{Type: TypeLocal, Dest: dest}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"-rw------- x", "-rw-r----- dir/file", "drwxr-xr-x dir"}
	if diff := cmp.Diff(want, list(t, dest)); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
}

// broken is a layer whose content can't be had.
func (e *Exporter) broken(t *testing.T, err error) Image {
	t.Helper()
	es := []layers.Entry{
		{Path: "a", Type: layers.Regular, Mode: 0o644, Inline: true, ModTime: time.Unix(1, 0), Digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{Path: "b", Type: layers.Regular, Mode: 0o644, Size: 5, ModTime: time.Unix(1, 0), Digest: "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"},
	}
	id, aerr := e.Layers.AddRecipe(es)
	if aerr != nil {
		t.Fatal(aerr)
	}
	img := Image{Tree: layers.Tree{id}, Target: plan.Target{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}}
	img.Target.Image.Platform = img.Target.Platform
	img.Sources.File = func(context.Context, layers.ID, layers.Entry) (io.ReadCloser, error) { return nil, err }
	return img
}

// TestFailureLeavesNothing: neither a file, nor a part of one, nor a change to
// what was there.
func TestFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	wrong := errors.New("disk on fire")
	for _, typ := range []string{TypeLocal, TypeTar, TypeOCI, TypeDocker} {
		for _, tarred := range []bool{true, false} {
			for _, old := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s tar=%v over=%v", typ, tarred, old), func(t *testing.T) {
					t.Parallel()
					e := newExporter(t)
					img := e.broken(t, wrong)
					parent := t.TempDir()
					dest := filepath.Join(parent, "dest")
					isDir := typ == TypeLocal || !tarred && typ != TypeTar
					if old && isDir {
						os.Mkdir(dest, 0o755)
						os.WriteFile(filepath.Join(dest, "a"), []byte("old"), 0o644)
					} else if old {
						os.WriteFile(dest, []byte("old"), 0o644)
					}
					before := list(t, parent)
					_, err := e.Export(t.Context(), []Image{img}, Output{Type: typ, Dest: dest, Tar: tarred})
					if !errors.Is(err, wrong) {
						t.Fatalf("error is %v", err)
					}
					after := list(t, parent)
					for _, l := range after {
						if strings.Contains(l, tempPrefix) {
							t.Errorf("left: %s", l)
						}
					}
					if old {
						if strip(before) != strip(after) {
							t.Errorf("there was %q, there is %q", before, after)
						}
					} else if fi, err := os.Stat(dest); err == nil && !fi.IsDir() {
						t.Error("there is a file now")
					}
				})
			}
		}
	}
}

// strip leaves out times, which a directory's change with temporary files.
func strip(lines []string) string {
	var out []string
	for _, l := range lines {
		out = append(out, strings.Join(strings.Fields(l)[:2], " "))
	}
	return strings.Join(out, "\n")
}

func TestCancelTellsTheCause(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the user wants to go home")
	img := e.broken(t, nil)
	img.Sources.File = func(ctx context.Context, _ layers.ID, _ layers.Entry) (io.ReadCloser, error) {
		cancel(cause)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	var events []progress.Event
	e.Progress = func(ev progress.Event) { events = append(events, ev) }
	dest := filepath.Join(t.TempDir(), "x.tar")
	if _, err := e.Export(ctx, []Image{img}, Output{Type: TypeOCI, Dest: dest, Tar: true}); !errors.Is(err, cause) {
		t.Errorf("error is %v", err)
	}
	if last := events[len(events)-1]; last.Kind != progress.Done || last.Error != "canceled" {
		t.Errorf("last event is %+v", last)
	}
}

func TestFileDestinations(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries[:2]...)
	dir := t.TempDir()
	var stdout bytes.Buffer
	e.Stdout = &stdout
	export := func(dest string) {
		t.Helper()
		if _, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeTar, Dest: dest, Tar: true}); err != nil {
			t.Fatal(err)
		}
	}
	export("-")
	want := stdout.Bytes()

	// A symlink to a file: the file is replaced, the link stays.
	real := filepath.Join(dir, "real.tar")
	os.WriteFile(real, nil, 0o600)
	link := filepath.Join(dir, "link.tar")
	os.Symlink("real.tar", link)
	export(link)
	if got, _ := os.ReadFile(real); !bytes.Equal(got, want) {
		t.Errorf("the link's file has %d bytes, want %d", len(got), len(want))
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", fi, err)
	}

	// A named pipe is written to.
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		b, _ := os.ReadFile(pipe)
		got <- b
	}()
	export(pipe)
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("%d bytes came through the pipe, want %d", len(b), len(want))
	}
	if fi, err := os.Lstat(pipe); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("the pipe was replaced: %v, %v", fi, err)
	}
}

func TestTar(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries...)
	upper, err := e.Layers.AddEntries(t.Context(), []layers.Entry{
		{Path: "dir", Type: layers.Dir, Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid()},
		{Path: "dir/link", Type: layers.Whiteout},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	img.Tree = append(img.Tree, upper)
	arm := img
	arm.Target.Platform.Architecture, arm.Target.Platform.Variant = "arm", "v7"
	read := func(images []Image, o Output) (out []string) {
		t.Helper()
		var b bytes.Buffer
		e.Stdout = &b
		o.Type, o.Dest, o.Tar = TypeTar, "-", true
		if _, err := e.Export(t.Context(), images, o); err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%c %o %s %d", h.Typeflag, h.Mode, h.Name, h.ModTime.Unix()))
		}
	}
	want := []string{
		"5 755 dir/ 315532801", "0 640 dir/file 315532801", "2 777 escape 315532801", "6 600 fifo 315532801",
		"5 555 readonly/ 315532801", "0 444 readonly/in 315532801", "0 4755 suid 315532801",
	}
	if diff := cmp.Diff(want, read([]Image{img}, Output{})); diff != "" {
		t.Errorf("tar (-want +got):\n%s", diff)
	}
	two := read([]Image{img, arm}, Output{})
	if len(two) != 16 || !strings.Contains(two[0], " linux_amd64/ ") || !strings.Contains(two[8], " linux_arm_v7/ ") {
		t.Errorf("two platforms: %q", two)
	}
	epoch := time.Unix(2_000_000_000, 0)
	if got := read([]Image{img}, Output{Epoch: &epoch}); !strings.HasSuffix(got[1], " 2000000000") {
		t.Errorf("with an epoch: %q", got)
	}
	if got := read([]Image{img}, Output{Epoch: &epoch, RewriteTimes: true}); !strings.HasSuffix(got[1], " 2000000000") {
		t.Errorf("with rewrite-timestamp: %q", got)
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries[:2]...)
	ref := "docker.io/library/app:1"
	response, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeImage, Names: []string{ref}})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := e.Images.Find("app:1")
	if err != nil {
		t.Fatal(err)
	}
	id := stored.Images[0].ID.String()
	want := map[string]any{"image.name": ref, "containerimage.digest": id, "containerimage.config.digest": id}
	if diff := cmp.Diff(want, response); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	// Nothing was compressed: the only blob is the configuration.
	blobs, _ := filepath.Glob(filepath.Join(filepath.Dir(e.Packer.Blobs.Path(stored.Images[0].ID)), "*"))
	if len(blobs) != 1 {
		t.Errorf("%d blobs are in the store, want the configuration", len(blobs))
	}
	raw, err := e.Images.Config(stored.Images[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil || c.Created == nil || !c.Created.Equal(layers.DefaultModTime) {
		t.Errorf("created is %v, %v", c.Created, err)
	}
}

func TestRegistryAndArchivesAgree(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	e := newExporter(t)
	img := e.tree(t, entries...)
	ref := strings.TrimPrefix(s.URL, "http://") + "/team/app:1"
	pushed, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeRegistry, Names: []string{ref}})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	there, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(there); err != nil {
		t.Error(err)
	}
	if d, _ := there.Digest(); d.String() != pushed["containerimage.digest"] {
		t.Errorf("the registry has %s, the response says %v", d, pushed["containerimage.digest"])
	}
	if _, err := e.Images.Find(ref); err != nil {
		t.Errorf("the image is not in the store: %v", err)
	}

	file := filepath.Join(t.TempDir(), "app.tar")
	saved, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeDocker, Names: []string{ref}, Dest: file, Tar: true})
	if err != nil {
		t.Fatal(err)
	}
	if saved["containerimage.digest"] != pushed["containerimage.digest"] {
		t.Errorf("the archive has %v, the registry %v", saved["containerimage.digest"], pushed["containerimage.digest"])
	}
	loaded, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(loaded); err != nil {
		t.Error(err)
	}

	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeDocker, Names: []string{ref}, Dest: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	e := newExporter(t)
	img := e.tree(t, entries[:2]...)
	for want, o := range map[string]Output{
		"a name is needed":           {Type: TypeRegistry},
		"dest= is missing":           {Type: TypeTar},
		"stdout can't be a dir":      {Type: TypeLocal, Dest: "-"},
		"tar=false makes a":          {Type: TypeOCI, Dest: "-"},
		"can't hold images for":      {Type: TypeDocker, Dest: "x", Tar: true},
		"know no zstd":               {Type: TypeOCI, Dest: "x", Tar: true, Pack: image.PackOptions{Docker: true, Compression: "zstd"}},
		"needs SOURCE_DATE_EPOCH":    {Type: TypeTar, Dest: "x", RewriteTimes: true},
		`output type "x" is not one`: {Type: "x"},
	} {
		if _, err := e.Export(t.Context(), []Image{img, img}, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error is %v, want %q", o, err, want)
		}
	}
}
