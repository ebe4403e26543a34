// Package imagetree reads images so that what two tools made of one Dockerfile
// can be compared: their configurations, histories and file trees, whatever the
// layers, the compression and the times.
package imagetree

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// Image is what is compared.
type Image struct {
	Config  any
	History []string
	Files   map[string]string // path → type, mode, owner, size, link, device, xattrs and digest
}

// ReadLayout reads the first image of an OCI layout.
func ReadLayout(dir string) (*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	img, err := first(index)
	if err != nil {
		return nil, err
	}
	return Read(img)
}

// first is the first image of an index, or of the index that it names first.
func first(index v1.ImageIndex) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) == 0 {
		return nil, errors.New("the index names no image")
	}
	desc := m.Manifests[0]
	if desc.MediaType.IsIndex() {
		child, err := index.ImageIndex(desc.Digest)
		if err != nil {
			return nil, err
		}
		return first(child)
	}
	return index.Image(desc.Digest)
}

// Read reads an image, with the contents of all layers.
func Read(img v1.Image) (*Image, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	out := &Image{Files: map[string]string{}}
	history, _ := config["history"].([]any)
	for _, h := range history {
		m, _ := h.(map[string]any)
		out.History = append(out.History, fmt.Sprintln(m["created_by"], m["comment"], m["empty_layer"], m["author"]))
	}
	delete(config, "history")
	delete(config, "rootfs")
	delete(config, "created")
	out.Config = config

	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if err := out.add(l); err != nil {
			return nil, err
		}
	}
	// A directory whose entry is not in any layer is made like this.
	for name := range maps.Clone(out.Files) {
		for d := path.Dir(name); d != "/"; d = path.Dir(d) {
			if _, ok := out.Files[d]; !ok {
				out.Files[d] = fmt.Sprintf("%c %o %d:%d %d %q %d,%d %v %x", tar.TypeDir, 0o755, 0, 0, 0, "", 0, 0, []string{}, sha256.New().Sum(nil)[:6])
			}
		}
	}
	delete(out.Files, "/")
	return out, nil
}

// add puts a layer on top, as the image specification says (layer.md). That of
// a library leaves opaque marks and names with colons out.
func (i *Image) add(l v1.Layer) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	own := map[string]bool{} // what this layer has
	// remove takes away what lower layers have below a directory.
	remove := func(dir string) {
		for name := range i.Files {
			if strings.HasPrefix(name, dir+"/") && !own[name] {
				delete(i.Files, name)
			}
		}
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // with which checksums are checked
			return err
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		dir, base := path.Split(name)
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			if hidden == ".wh..opq" {
				remove(strings.TrimSuffix(dir, "/"))
			} else if name = dir + hidden; !own[name] {
				delete(i.Files, name)
				remove(name)
			}
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			return err
		}
		xattrs := slices.Sorted(maps.Keys(h.PAXRecords))
		xattrs = slices.DeleteFunc(xattrs, func(s string) bool { return !strings.HasPrefix(s, "SCHILY.xattr.") })
		if h.Typeflag != tar.TypeDir && i.Files[name] != "" && i.Files[name][0] == tar.TypeDir {
			remove(name)
		}
		i.Files[name] = fmt.Sprintf("%c %o %d:%d %d %q %d,%d %v %x", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname, h.Devmajor, h.Devminor, xattrs, sum.Sum(nil)[:6])
		own[name] = true
	}
}

// Unlinked is an image like i whose hard links are files of their own.
func (i *Image) Unlinked() *Image {
	out := &Image{Config: i.Config, History: i.History, Files: maps.Clone(i.Files)}
	for name, file := range i.Files {
		var target string
		if n, _ := fmt.Sscanf(file, "1 %s %s %s %q", new(string), new(string), new(string), &target); n == 4 {
			out.Files[name] = i.Files["/"+target]
		}
	}
	return out
}
