package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

func (s *store) sample(t testing.TB) *Packed {
	t.Helper()
	return s.build(t, linux, PackOptions{}, s.dir(t, regular("etc-motd", "hello\n")), s.dir(t, regular("second", strings.Repeat("x", 1e6))))
}

func (s *store) sampleIndex(t testing.TB, names ...string) Bundle {
	t.Helper()
	id := s.dir(t, regular("a", "1"))
	images := []*Packed{s.build(t, linux, PackOptions{}, id), s.build(t, arm, PackOptions{}, id)}
	desc, raw, err := Index(images, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return Bundle{Desc: desc, Raw: raw, Images: images, Names: names}
}

type writer func(context.Context, io.Writer, []Bundle) error

func write1(t testing.TB, w writer, bundles ...Bundle) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := w(t.Context(), &b, bundles); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func untar(t testing.TB, data []byte) (names []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 {
			t.Errorf("%s has the time %v", h.Name, h.ModTime)
		}
		names = append(names, h.Name)
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteOCI(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	data := write1(t, WriteOCI, Single(p, "docker.io/me/app:1", "docker.io/me/app:2"))
	if !bytes.Equal(data, write1(t, WriteOCI, Single(p, "docker.io/me/app:1", "docker.io/me/app:2"))) {
		t.Error("written twice gives two archives")
	}
	list, files := untar(t, data)
	want := []string{"blobs/", "blobs/sha256/", blobPath(p.Layers[0].Desc.Digest), blobPath(p.Layers[1].Desc.Digest),
		blobPath(p.Config.Desc.Digest), blobPath(p.Desc.Digest), "index.json", "oci-layout"}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	var x ocispec.Index
	if err := json.Unmarshal(files["index.json"], &x); err != nil {
		t.Fatal(err)
	}
	if len(x.Manifests) != 2 || x.Manifests[1].Annotations["io.containerd.image.name"] != "docker.io/me/app:2" ||
		x.Manifests[1].Annotations["org.opencontainers.image.ref.name"] != "2" || x.Manifests[1].Digest != p.Desc.Digest {
		t.Errorf("index: %s", files["index.json"])
	}
}

// A layer that has just been made goes into a file by another way than into a
// stream, and than one that was there.
func TestArchiveFile(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	noise := make([]byte, 3e6)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	id := s.dir(t, regular("noise", string(noise)))
	made, found := s.build(t, linux, PackOptions{}, id), s.build(t, linux, PackOptions{}, id)
	f, err := os.Create(filepath.Join(t.TempDir(), "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteOCI(t.Context(), f, []Bundle{Single(made)}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := write1(t, WriteOCI, Single(found))
	if !bytes.Equal(got, want) || !bytes.Equal(write1(t, WriteOCI, Single(made)), want) {
		t.Errorf("an archive of %d bytes differs from one of %d bytes", len(got), len(want))
	}
	_, files := untar(t, got)
	if digest.FromBytes(files[blobPath(made.Layers[0].Desc.Digest)]) != made.Layers[0].Desc.Digest {
		t.Error("the layer is damaged")
	}
}

func TestWriteDocker(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	data := write1(t, WriteDocker, Single(p, "docker.io/library/app:1", "docker.io/me/app:2"), Single(p, "docker.io/library/app:3"))
	_, files := untar(t, data)
	want := fmt.Sprintf(`[{"Config":"blobs/sha256/%s","RepoTags":["app:1","me/app:2","app:3"],"Layers":["blobs/sha256/%s","blobs/sha256/%s"]}]`,
		p.Config.Desc.Digest.Encoded(), p.Layers[0].Desc.Digest.Encoded(), p.Layers[1].Desc.Digest.Encoded())
	if string(files["manifest.json"]) != want {
		t.Errorf("manifest.json is %s, want %s", files["manifest.json"], want)
	}
	top := p.Layers[1].Desc.Digest.Encoded()
	if want := `{"app":{"1":"` + top + `","3":"` + top + `"},"me/app":{"2":"` + top + `"}}`; string(files["repositories"]) != want {
		t.Errorf("repositories is %s", files["repositories"])
	}
	tag, err := name.NewTag("me/app:2")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	wantError(t, WriteDocker(t.Context(), io.Discard, []Bundle{s.sampleIndex(t, "docker.io/library/x:1")}), "several platforms")
}

func TestArchiveOfBadContent(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for name, change := range map[string]func(*Packed){
		"another layer":    func(p *Packed) { p.Layers[0].Open = memory("", []byte("short")).open },
		"a longer layer":   func(p *Packed) { p.Layers[0].Open = memory("", make([]byte, 1<<20)).open },
		"no way to it":     func(p *Packed) { p.Layers[0].Open = nil },
		"another manifest": func(p *Packed) { p.Manifest = []byte("{}") },
	} {
		p := s.sample(t)
		change(p)
		for kind, err := range map[string]error{
			"OCI":    WriteOCI(t.Context(), io.Discard, []Bundle{Single(p)}),
			"docker": WriteDocker(t.Context(), io.Discard, []Bundle{Single(p)}),
			"layout": WriteLayout(t.Context(), t.TempDir(), []Bundle{Single(p)}),
		} {
			if err == nil {
				t.Errorf("%s with %s was written", kind, name)
			}
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := WriteOCI(ctx, io.Discard, []Bundle{Single(s.sample(t))}); !errors.Is(err, why) {
		t.Errorf("after cancel: %v", err)
	}
}

func TestLayout(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	dir := filepath.Join(t.TempDir(), "new", "layout")
	one, x := s.sample(t), s.sampleIndex(t, "docker.io/me/multi:x")
	if err := WriteLayout(t.Context(), dir, []Bundle{Single(one, "docker.io/me/app:1")}); err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(t.Context(), dir, []Bundle{x}); err != nil {
		t.Fatal(err)
	}
	two := s.build(t, linux, PackOptions{}, s.dir(t, regular("b", "2")))
	if err := WriteLayout(t.Context(), dir, []Bundle{Single(two, "docker.io/me/app:1"), Single(two)}); err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(t.Context(), dir, []Bundle{Single(two)}); err != nil { // no second entry without a name
		t.Fatal(err)
	}
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	index, err := readIndex(l.root)
	if err != nil || len(index.Manifests) != 3 {
		t.Errorf("index: %+v, %v", index, err)
	}
	for ref, want := range map[string]digest.Digest{
		"1": two.Desc.Digest, "me/app:1": two.Desc.Digest, "docker.io/me/app:1": two.Desc.Digest, "x": x.Images[0].Desc.Digest,
		one.Desc.Digest.String(): one.Desc.Digest, x.Desc.Digest.String(): x.Images[0].Desc.Digest,
	} {
		img, err := l.Resolve(t.Context(), ref, linux)
		if err != nil || img.Desc.Digest != want {
			t.Errorf("Resolve(%q): %v, want %s", ref, err, want)
			continue
		}
		r, err := l.Blob(img.Manifest.Layers[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		r.Close()
	}
	if img, err := l.Resolve(t.Context(), "x", arm); err != nil || img.Desc.Platform.Architecture != "arm64" || img.Index != x.Desc.Digest {
		t.Errorf("arm64: %+v, %v", img, err)
	}
	_, err = l.Resolve(t.Context(), "", linux)
	wantError(t, err, dir, `no image "latest"`, "[x 1]")
	_, err = l.Resolve(t.Context(), "x", ocispec.Platform{OS: "linux", Architecture: "s390x"})
	wantError(t, err, "no image for linux/s390x")
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	single := t.TempDir()
	if err := WriteLayout(t.Context(), single, []Bundle{Single(one)}); err != nil {
		t.Fatal(err)
	}
	l2, err := OpenLayout(single)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	if img, err := l2.Resolve(t.Context(), "", linux); err != nil || img.Desc.Digest != one.Desc.Digest {
		t.Errorf("the only image: %v", err)
	}
}

func TestHostileLayout(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, p.Manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	manifestFile := blobPath(p.Desc.Digest)
	for name, spoil := range map[string]func(dir string) error{
		"symlink out": func(dir string) error { return os.Symlink(secret, filepath.Join(dir, manifestFile)) },
		"pipe":        func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, manifestFile), 0o600) },
		"directory":   func(dir string) error { return os.Mkdir(filepath.Join(dir, manifestFile), 0o700) },
		"changed": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, manifestFile), bytes.Repeat([]byte("x"), len(p.Manifest)), 0o600)
		},
		"huge": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, manifestFile), make([]byte, 9<<20), 0o600)
		},
		"missing": func(string) error { return nil },
	} {
		dir := t.TempDir()
		if err := WriteLayout(t.Context(), dir, []Bundle{Single(p, "a")}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, manifestFile)); err != nil {
			t.Fatal(err)
		}
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Resolve(t.Context(), "latest", linux); err == nil {
			t.Errorf("%s passed", name)
		}
		l.Close()
	}
	_, err := OpenLayout(t.TempDir())
	wantError(t, err, "is no OCI layout")
}

// names of loaded images, as "ref=command".
func (s *store) load(t *testing.T, archive []byte) []Name {
	t.Helper()
	loaded, err := s.images.Load(t.Context(), bytes.NewReader(archive), s.layers)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestLoadWhatWasWritten(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	for kind, w := range map[string]writer{"OCI": WriteOCI, "docker": WriteDocker} {
		archive := write1(t, w, Single(p, "docker.io/library/app:1", "docker.io/me/app:2"))
		for _, z := range []compress.Algorithm{compress.None, compress.Gzip, compress.Zstd} {
			var packed bytes.Buffer
			c, err := compress.NewWriter(&packed, compress.Options{Algorithm: z})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(archive)
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			to := newStore(t)
			loaded := to.load(t, packed.Bytes())
			if len(loaded) != 2 || loaded[1].Ref != "docker.io/me/app:2" || loaded[0].Images[0].ID != p.Config.Desc.Digest {
				t.Errorf("%s: loaded %+v", kind, loaded)
			}
			n := to.find(t, "app:1")
			again, err := to.packer.Stored(t.Context(), n.Images[0], snapshot.Sources{})
			if err != nil || again.Desc.Digest != p.Desc.Digest || !bytes.Equal(again.Manifest, p.Manifest) {
				t.Errorf("%s: stored image has another manifest: %v", kind, err)
				continue
			}
			valid(t, Single(again))
			src := snapshot.Sources{Blob: func(_ context.Context, _ snapshot.Layer, d ocispec.Descriptor) (io.ReadCloser, error) {
				return to.blobs.Reader(d.Digest, d.Size)
			}}
			dirs, err := to.layers.Ensure(t.Context(), n.Images[0].Tree, src)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(dirs[0], "etc-motd")); err != nil || string(b) != "hello\n" {
				t.Errorf("%s: unpacked %q, %v", kind, b, err)
			}
		}
	}
}

func TestLoadIndex(t *testing.T) {
	t.Parallel()
	x := newStore(t).sampleIndex(t, "docker.io/me/multi:x")
	to := newStore(t)
	loaded := to.load(t, write1(t, WriteOCI, x))
	if len(loaded) != 1 || len(loaded[0].Images) != 2 || loaded[0].Index != x.Desc.Digest || loaded[0].Images[1].Platform.Architecture != "arm64" {
		t.Errorf("loaded %+v", loaded)
	}
	unnamed := newStore(t)
	x.Names = nil
	loaded = unnamed.load(t, write1(t, WriteOCI, x))
	if len(loaded) != 1 || loaded[0].Ref != "" || len(loaded[0].Images) != 2 {
		t.Errorf("loaded %+v", loaded)
	}
}

// member is a file of an archive made by hand.
type member struct {
	name, body, link string
	kind             byte
}

func archiveOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Size: int64(len(m.body)), Linkname: m.link, Mode: 0o644}
		if m.kind != 0 {
			h.Typeflag = m.kind
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, m.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerTar is an uncompressed layer of one file.
func layerTar(t testing.TB, content string) string {
	t.Helper()
	var b bytes.Buffer
	entries := func(yield func(layers.Entry, error) bool) { yield(regular("f", content), nil) }
	if err := layers.WriteTar(t.Context(), &b, entries, nil, layers.TarOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, s)
	w.Close()
	return b.String()
}

func configJSON(layers ...string) string {
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, digest.FromString(l).String())
	}
	raw, _ := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	return string(raw)
}

// TestLoadOldDocker loads what Docker wrote before it used OCI layouts: a
// directory for each layer, a repeated layer as a symlink.
func TestLoadOldDocker(t *testing.T) {
	t.Parallel()
	one, two := layerTar(t, "one"), layerTar(t, "two")
	archive := archiveOf(t,
		member{name: "aaaa/", kind: tar.TypeDir},
		member{name: "aaaa/VERSION", body: "1.0"},
		member{name: "aaaa/layer.tar", body: one},
		member{name: "./bbbb/layer.tar", body: zipped(two)},
		member{name: "cccc/layer.tar", kind: tar.TypeSymlink, link: "../aaaa/layer.tar"},
		member{name: "config.json", body: configJSON(one, two, one)},
		member{name: "manifest.json", body: `[{"Config":"config.json","RepoTags":["old:1","registry.example.com/old:2"],"Layers":["aaaa/layer.tar","bbbb/layer.tar","cccc/layer.tar"]}]`},
		member{name: "repositories", body: `{}`},
	)
	s := newStore(t)
	loaded := s.load(t, archive)
	if len(loaded) != 2 || loaded[0].Ref != "docker.io/library/old:1" || loaded[1].Ref != "registry.example.com/old:2" {
		t.Errorf("loaded %+v", loaded)
	}
	img := s.find(t, "old:1").Images[0]
	if len(img.Tree) != 3 || img.Tree[0] != img.Tree[2] {
		t.Errorf("tree %v", img.Tree)
	}
	packed, err := s.packer.Stored(t.Context(), img, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	valid(t, Single(packed, "docker.io/library/old:1"))
	if compressionOf(t, packed.Layers[0]) != "gzip" {
		t.Error("a layer that was not compressed stays so")
	}
}

func TestLoadHostile(t *testing.T) {
	t.Parallel()
	layer := layerTar(t, "one")
	docker := func(config, manifest string, more ...member) []byte {
		return archiveOf(t, append([]member{{name: "l", body: layer}, {name: "c", body: config}, {name: "manifest.json", body: manifest}}, more...)...)
	}
	const good = `[{"Config":"c","RepoTags":["victim:1"],"Layers":["l"]}]`
	for name, tc := range map[string]struct {
		archive []byte
		want    string
	}{
		"nothing":            {nil, "empty"},
		"text":               {[]byte(strings.Repeat("no archive ", 100)), "archive"},
		"no image":           {archiveOf(t, member{name: "x", body: "y"}), "neither index.json nor manifest.json"},
		"no images":          {docker(configJSON(layer), `[]`), "holds no image"},
		"escape":             {docker(configJSON(layer), good, member{name: "../../etc/passwd", body: "x"}), "../../etc/passwd"},
		"false diffID":       {docker(configJSON("another"), good), "instead of"},
		"diffIDs missing":    {docker(configJSON(), good), "1 layers for 0 diffIDs"},
		"bad diffID":         {docker(`{"rootfs":{"diff_ids":["../x"]}}`, good), "diffID"},
		"config missing":     {docker(configJSON(layer), `[{"Config":"d","Layers":[]}]`), `no file "d"`},
		"config is no JSON":  {docker("x", good), "image configuration"},
		"link in a circle":   {docker(configJSON(layer), `[{"Config":"c","Layers":["a"]}]`, member{name: "a", kind: tar.TypeSymlink, link: "b"}, member{name: "b", kind: tar.TypeSymlink, link: "a"}), `no file "a"`},
		"link out":           {docker(configJSON(layer), `[{"Config":"c","Layers":["a"]}]`, member{name: "a", kind: tar.TypeSymlink, link: "/etc/passwd"}), `no file "a"`},
		"bad name":           {docker(configJSON(layer), `[{"Config":"c","RepoTags":["A B"],"Layers":["l"]}]`), "A B"},
		"manifest no JSON":   {docker(configJSON(layer), `{`), "manifest.json"},
		"blob's digest":      {archiveOf(t, member{name: "blobs/sha256/" + strings.Repeat("0", 64), body: "x"}), "blobs/sha256/000"},
		"index no JSON":      {archiveOf(t, member{name: "index.json", body: "{"}), "index"},
		"index to nowhere":   {archiveOf(t, member{name: "index.json", body: `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest.FromString("x").String() + `","size":1}]}`}), "no file"},
		"huge index":         {archiveOf(t, member{name: "index.json", body: strings.Repeat(" ", 9<<20)}), "longer than"},
		"cut off":            {docker(configJSON(layer), good)[:1024], ""},
		"compressed by bz2":  {archiveOf(t, member{name: "l", body: "BZh91AY&SY" + layer}, member{name: "c", body: configJSON(layer)}, member{name: "manifest.json", body: good}), "bzip2"},
		"damaged gzip layer": {archiveOf(t, member{name: "l", body: zipped(layer)[:60]}, member{name: "c", body: configJSON(layer)}, member{name: "manifest.json", body: good}), "layer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			old := s.put(t, "old", []string{"victim:1"})
			_, err := s.images.Load(t.Context(), bytes.NewReader(tc.archive), s.layers)
			wantError(t, err, tc.want)
			if n := s.find(t, "victim:1"); n.Images[0].ID != old.ID {
				t.Error("a name was moved")
			}
		})
	}
}

func TestLoadSparse(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := "1\n0\n1\n" + strings.Repeat("\x00", 506) + "x"
	// archive/tar writes no sparse files: the names are put in afterwards.
	h := &tar.Header{Name: "l", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644, PAXRecords: map[string]string{
		"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": "1099511627776",
	}}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, body)
	w.Close()
	s := newStore(t)
	_, err := s.images.Load(t.Context(), bytes.NewReader(bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))), s.layers)
	wantError(t, err, "sparse")
}

func FuzzLoad(f *testing.F) {
	layer := layerTar(f, "one")
	f.Add(archiveOf(f, member{name: "l", body: layer}, member{name: "c", body: configJSON(layer)},
		member{name: "manifest.json", body: `[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`}))
	s := newStore(f)
	f.Add(write1(f, WriteOCI, Single(s.build(f, linux, PackOptions{}, s.dir(f, regular("a", "1"))), "docker.io/me/app:1")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		s := newStore(t)
		loaded, err := s.images.Load(t.Context(), bytes.NewReader(archive), s.layers)
		if err != nil {
			return
		}
		for _, n := range loaded {
			for _, img := range n.Images {
				if _, err := s.images.Find(img.ID.String()); err != nil {
					t.Errorf("loaded, but not there: %v", err)
				}
			}
		}
	})
}

// run runs another tool, or skips if it is not installed.
func run(t *testing.T, tool string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("SKIPPED: %s is not installed; its reading of our images is not tested", tool)
	}
	out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

func TestOthersReadOurs(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	dir := t.TempDir()
	ociTar, dockerTar, layoutDir := filepath.Join(dir, "oci.tar"), filepath.Join(dir, "docker.tar"), filepath.Join(dir, "layout")
	b := Single(p, "docker.io/me/app:1")
	for path, data := range map[string][]byte{ociTar: write1(t, WriteOCI, b), dockerTar: write1(t, WriteDocker, b)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteLayout(t.Context(), layoutDir, []Bundle{b}); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"oci-archive:" + ociTar + ":1", "docker-archive:" + dockerTar + ":me/app:1", "oci:" + layoutDir + ":1"} {
		t.Run("skopeo "+strings.SplitN(from, ":", 2)[0], func(t *testing.T) {
			t.Parallel()
			to := filepath.Join(t.TempDir(), "copy")
			run(t, "skopeo", "--insecure-policy", "copy", from, "dir:"+to)
			raw, err := os.ReadFile(filepath.Join(to, p.Config.Desc.Digest.Encoded()))
			if err != nil || !bytes.Equal(raw, bytesOf(t, p.Config)) {
				t.Errorf("the configuration did not arrive: %v", err)
			}
		})
	}
	t.Run("umoci", func(t *testing.T) {
		t.Parallel()
		to := filepath.Join(t.TempDir(), "bundle")
		run(t, "umoci", "unpack", "--rootless", "--image", layoutDir+":1", to)
		got, err := os.ReadFile(filepath.Join(to, "rootfs", "etc-motd"))
		if err != nil || string(got) != "hello\n" {
			t.Errorf("unpacked %q, %v", got, err)
		}
	})
	for _, archive := range []string{ociTar, dockerTar} {
		t.Run("podman "+filepath.Base(archive), func(t *testing.T) {
			t.Parallel()
			if os.Geteuid() != 0 {
				t.Skip("SKIPPED: needs root")
			}
			at, err := os.MkdirTemp("", "p") // podman wants a short path
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(at) })
			podman := []string{"--root", filepath.Join(at, "root"), "--runroot", filepath.Join(at, "run"), "--storage-driver", "vfs"}
			run(t, "podman", append(podman, "load", "-i", archive)...)
			id := run(t, "podman", append(podman, "images", "-q", "--no-trunc")...)
			if !strings.Contains(id, p.Config.Desc.Digest.Encoded()) {
				t.Errorf("podman has %q", id)
			}
		})
	}
}

func TestWeReadOthers(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := s.sample(t)
	layoutDir := filepath.Join(t.TempDir(), "layout")
	if err := WriteLayout(t.Context(), layoutDir, []Bundle{Single(p, "docker.io/me/app:1")}); err != nil {
		t.Fatal(err)
	}
	for kind, suffix := range map[string]string{"docker-archive": ":other:2", "oci-archive": ":docker.io/library/other:2"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "archive.tar")
			run(t, "skopeo", "--insecure-policy", "copy", "oci:"+layoutDir+":1", kind+":"+path+suffix)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			to := newStore(t)
			to.load(t, data)
			packed, err := to.packer.Stored(t.Context(), to.find(t, "other:2").Images[0], snapshot.Sources{})
			if err != nil {
				t.Fatal(err)
			}
			valid(t, Single(packed))
			if got, want := configOf(t, packed).RootFS.DiffIDs, configOf(t, p).RootFS.DiffIDs; !slices.Equal(got, want) {
				t.Errorf("diffIDs %v, want %v", got, want)
			}
		})
	}
}
