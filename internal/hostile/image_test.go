package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// entry is one of an archive.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}, data}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}}
}

func special(name string, typ byte, major, minor int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: typ, Mode: 0o666, Devmajor: major, Devminor: minor}}
}

// archive is a tar of entries.
func (b *bed) archive(entries ...entry) []byte {
	b.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		b.must(tw.WriteHeader(&e.Header))
		_, err := io.WriteString(tw, e.data)
		b.must(err)
	}
	b.must(tw.Close())
	return buf.Bytes()
}

// image pushes the base image with more layers on it and returns its name.
func (b *bed) image(layers ...[]byte) string {
	b.Helper()
	return b.imageOf(nil, layers...)
}

// imageOf is an image whose configuration was changed.
func (b *bed) imageOf(change func(*v1.ConfigFile), layers ...[]byte) string {
	b.Helper()
	r, err := name.ParseReference(b.base)
	b.must(err)
	img, err := remote.Image(r)
	b.must(err)
	for _, l := range layers {
		img, err = mutate.AppendLayers(img, b.layer(l))
		b.must(err)
	}
	if change != nil {
		cfg, err := img.ConfigFile()
		b.must(err)
		cfg = cfg.DeepCopy()
		change(cfg)
		img, err = mutate.ConfigFile(img, cfg)
		b.must(err)
	}
	return b.push(img)
}

func (b *bed) layer(data []byte) v1.Layer {
	b.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	b.must(err)
	_, err = w.Write(data)
	b.must(err)
	b.must(w.Close())
	return rawLayer{buf.Bytes(), digest.FromBytes(data), types.OCILayer}
}

// rawLayer is a layer of bytes that are what they are.
type rawLayer struct {
	data   []byte
	diffID digest.Digest
	media  types.MediaType
}

func (l rawLayer) Digest() (v1.Hash, error) { return v1.NewHash(digest.FromBytes(l.data).String()) }
func (l rawLayer) DiffID() (v1.Hash, error) { return v1.NewHash(l.diffID.String()) }
func (l rawLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.data)), nil
}
func (l rawLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l rawLayer) Size() (int64, error)                 { return int64(len(l.data)), nil }
func (l rawLayer) MediaType() (types.MediaType, error)  { return l.media, nil }

func (b *bed) push(img v1.Image) string {
	b.Helper()
	ref := b.registry + "/" + b.repository + ":v" + string(rune('a'+len(b.pushed)))
	b.pushed = append(b.pushed, ref)
	r, err := name.ParseReference(ref)
	b.must(err)
	b.must(remote.Write(r, img))
	return ref
}

// scratch is an image of these layers only.
func (b *bed) scratch(layers ...[]byte) v1.Image {
	b.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	b.must(err)
	for _, l := range layers {
		img, err = mutate.AppendLayers(img, b.layer(l))
		b.must(err)
	}
	return img
}

// blobs are what a hand-made registry serves.
type blobs map[string][]byte

func (s blobs) add(data []byte) (digest string, size int) {
	sum := sha256.Sum256(data)
	digest = "sha256:" + hex.EncodeToString(sum[:])
	s[digest] = data
	return digest, len(data)
}

// ServeHTTP serves the blobs, and the manifest "manifest" by any tag.
func (s blobs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, last, _ := strings.Cut(r.URL.Path, "/v2/")
	switch {
	case last == "":
		return
	case strings.Contains(last, "/manifests/"):
		data := s["manifest"]
		if d, ok := s[filepath.Base(last)]; ok {
			data = d
		}
		var m struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(data[:min(len(data), 1<<20)], &m)
		if m.MediaType == "" {
			m.MediaType = "application/vnd.oci.image.manifest.v1+json"
		}
		if t := s["media type"]; t != nil {
			m.MediaType = string(t)
		}
		w.Header().Set("Content-Type", m.MediaType)
		_, _ = w.Write(data)
	default:
		data, ok := s[filepath.Base(last)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}
}

// mustJSON encodes v.
func (b *bed) json(v any) []byte {
	b.Helper()
	data, err := json.Marshal(v)
	b.must(err)
	return data
}

// saved writes an archive to a file.
func (b *bed) saved(name string, entries ...entry) string {
	b.Helper()
	p := filepath.Join(b.dir, name)
	b.must(os.WriteFile(p, b.archive(entries...), 0o644))
	return p
}
