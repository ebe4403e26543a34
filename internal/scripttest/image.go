package scripttest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// pushBusybox pushes an image of one layer: busybox with links for all applets,
// and the users root and user (1000).
func pushBusybox(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "busybox REF")
	path, err := exec.LookPath("busybox")
	ts.Check(err)
	data, err := os.ReadFile(path)
	ts.Check(err)
	list, err := exec.Command(path, "--list").Output()
	ts.Check(err)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		ts.Check(tw.WriteHeader(&h))
		_, err := io.WriteString(tw, data)
		ts.Check(err)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(data))
	for _, d := range []string{"bin/", "etc/", "root/", "tmp/", "usr/", "var/"} {
		h := tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}
		if d == "tmp/" {
			h.Mode = 0o1777
		}
		add(h, "")
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")
	ts.Check(tw.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	ts.Check(err)
	cfg, err := img.ConfigFile()
	ts.Check(err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}
	img, err = mutate.ConfigFile(img, cfg)
	ts.Check(err)
	ref, err := name.ParseReference(args[0])
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
}

// images returns the images that a reference, archive or OCI layout holds.
func images(ts *testscript.TestScript, arg string) (out []v1.Image) {
	for _, img := range manifests(ts, arg) {
		if !isAttestation(ts, img) {
			out = append(out, img)
		}
	}
	return out
}

// isAttestation reports whether a manifest's layers are statements.
func isAttestation(ts *testscript.TestScript, img v1.Image) bool {
	m, err := img.Manifest()
	ts.Check(err)
	return len(m.Layers) > 0 && m.Layers[0].MediaType == "application/vnd.in-toto+json"
}

// printStatements prints the in-toto statements beside images, or those that
// refer to one.
func printStatements(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 || len(args) == 2 && args[0] != "-referrers" {
		ts.Fatalf("usage: statements [-referrers] REF|ARCHIVE")
	}
	var found []v1.Image
	if len(args) == 1 {
		found = manifests(ts, args[0])
	} else {
		ref, err := name.ParseReference(args[1])
		ts.Check(err)
		desc, err := remote.Get(ref)
		ts.Check(err)
		idx, err := remote.Referrers(ref.Context().Digest(desc.Digest.String()))
		ts.Check(err)
		m, err := idx.IndexManifest()
		ts.Check(err)
		for _, d := range m.Manifests {
			img, err := remote.Image(ref.Context().Digest(d.Digest.String()))
			ts.Check(err)
			found = append(found, img)
		}
	}
	for _, img := range found {
		if !isAttestation(ts, img) {
			continue
		}
		list, err := img.Layers()
		ts.Check(err)
		for _, l := range list {
			r, err := l.Compressed()
			ts.Check(err)
			data, err := io.ReadAll(r)
			ts.Check(err)
			printJSON(ts, data)
		}
	}
}

func manifests(ts *testscript.TestScript, arg string) []v1.Image {
	if p := ts.MkAbs(arg); strings.HasSuffix(arg, ".tar") || isDir(p) {
		if isDir(p) {
			return layoutImages(ts, p)
		}
		if _, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(p) }); err == nil {
			img, err := tarball.ImageFromPath(p, nil)
			ts.Check(err)
			return []v1.Image{img}
		}
		dir, err := os.MkdirTemp(ts.Getenv("WORK"), "layout-")
		ts.Check(err)
		ts.Check(untar(p, dir))
		return layoutImages(ts, dir)
	}
	ref, err := name.ParseReference(arg)
	ts.Check(err)
	desc, err := remote.Get(ref)
	ts.Check(err)
	if !desc.MediaType.IsIndex() {
		img, err := desc.Image()
		ts.Check(err)
		return []v1.Image{img}
	}
	idx, err := desc.ImageIndex()
	ts.Check(err)
	return indexImages(ts, idx)
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}

func layoutImages(ts *testscript.TestScript, dir string) []v1.Image {
	idx, err := layout.ImageIndexFromPath(dir)
	ts.Check(err)
	return indexImages(ts, idx)
}

func indexImages(ts *testscript.TestScript, idx v1.ImageIndex) (out []v1.Image) {
	m, err := idx.IndexManifest()
	ts.Check(err)
	for _, d := range m.Manifests {
		if d.MediaType.IsIndex() {
			child, err := idx.ImageIndex(d.Digest)
			ts.Check(err)
			out = append(out, indexImages(ts, child)...)
			continue
		}
		img, err := idx.Image(d.Digest)
		ts.Check(err)
		out = append(out, img)
	}
	return out
}

func untar(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(tr)
		if err := errors.Join(err, root.MkdirAll(filepath.Dir(h.Name), 0o755), root.WriteFile(h.Name, data, 0o644)); err != nil {
			return err
		}
	}
}

func validateImage(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "validate REF|ARCHIVE")
	for _, img := range images(ts, args[0]) {
		ts.Check(validate.Image(img))
	}
}

func printConfig(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "config REF|ARCHIVE")
	for _, img := range images(ts, args[0]) {
		raw, err := img.RawConfigFile()
		ts.Check(err)
		printJSON(ts, raw)
	}
}

func printJSON(ts *testscript.TestScript, raw []byte) {
	var b bytes.Buffer
	ts.Check(json.Indent(&b, raw, "", "  "))
	fmt.Fprintln(ts.Stdout(), b.String())
}

func printManifest(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "manifest REF")
	ref, err := name.ParseReference(args[0])
	ts.Check(err)
	desc, err := remote.Get(ref)
	ts.Check(err)
	printJSON(ts, desc.Manifest)
}

// printLayers lists the layers of an image that are not its base's first one:
// the busybox layer is only named.
func printLayers(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "layers REF|ARCHIVE")
	for n, img := range images(ts, args[0]) {
		if n > 0 {
			fmt.Fprintln(ts.Stdout())
		}
		list, err := img.Layers()
		ts.Check(err)
		for i, l := range list {
			fmt.Fprintf(ts.Stdout(), "layer %d\n", i)
			r, err := plain(l)
			ts.Check(err)
			ts.Check(listTar(ts.Stdout(), r))
			ts.Check(r.Close())
		}
	}
}

// plain is the layer's tar stream. The library knows gzip only.
func plain(l v1.Layer) (io.ReadCloser, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		return gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// listTar prints mode, owner, size and name of each entry; a layer with busybox
// is cut short.
func listTar(w io.Writer, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Name == "bin/busybox" {
			fmt.Fprintln(w, "  busybox")
			return nil
		}
		line := fmt.Sprintf("  %s %d:%d %d %s", tarMode(h), h.Uid, h.Gid, h.Size, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			line += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				line += fmt.Sprintf(" %s=%q", name, v)
			}
		}
		fmt.Fprintln(w, line)
	}
}

// tarMode is type and permissions: "d0755".
func tarMode(h *tar.Header) string {
	types := map[byte]string{tar.TypeReg: "-", tar.TypeLink: "h", tar.TypeSymlink: "l", tar.TypeChar: "c", tar.TypeBlock: "b", tar.TypeDir: "d", tar.TypeFifo: "p"}
	return fmt.Sprintf("%s%04o", types[h.Typeflag], h.Mode&0o7777)
}

func printTar(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "tartree FILE")
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	ts.Check(listTar(ts.Stdout(), f))
}

func subst(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: subst VAR FILE...")
	}
	for _, a := range args[1:] {
		p := ts.MkAbs(a)
		data, err := os.ReadFile(p)
		ts.Check(err)
		text := strings.ReplaceAll(string(data), "$"+args[0], ts.Getenv(args[0]))
		ts.Check(os.WriteFile(p, []byte(text), 0o644))
	}
}

func makeTar(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "mktar FILE DIR")
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	tw := tar.NewWriter(f)
	ts.Check(tw.AddFS(os.DirFS(ts.MkAbs(args[1]))))
	ts.Check(tw.Close())
}
