package explain

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/state/builds"
)

// shared is a build in the form in which it travels with a remote cache: a
// machine that starts with an empty store can tell what changed, too.
type shared struct {
	Ref   string            `json:"ref"`
	Attrs map[string]string `json:"attrs,omitempty"`
	Steps []builds.Step     `json:"steps"`
	// Files are lists of files as builds keeps them.
	Files map[digest.Digest][]byte `json:"files,omitempty"`
}

const (
	// maxShared bounds what Share makes, and maxLists the lists in it: what
	// does not fit is left out, and "files changed" is all that can be said.
	maxShared = 2 << 20
	maxLists  = 1 << 20
	// maxPlain bounds what Received unpacks.
	maxPlain = 64 << 20
)

// Share packs the record of a build, as text: registries keep nothing else as an
// object. It is empty if that is too large. check is shown what is packed, and
// may refuse it.
func Share(r builds.Record, check func(plain []byte) error) ([]byte, error) {
	steps, err := r.Steps()
	if err != nil || len(steps) == 0 {
		return nil, err
	}
	s := shared{Ref: r.Ref, Attrs: r.Attrs, Steps: steps, Files: map[digest.Digest][]byte{}}
	size := 0
	for _, step := range steps {
		for _, in := range step.Inputs {
			d, ok := in.Content()
			if !ok || s.Files[d] != nil {
				continue
			}
			data, err := os.ReadFile(filepath.Join(r.Dir, builds.FilesName(d)))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if size += len(data); size > maxLists {
				continue
			}
			s.Files[d] = data
		}
	}
	plain, err := json.Marshal(s)
	if err == nil {
		err = check(plain)
	}
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	if packed := z.EncodeAll(plain, nil); len(packed) <= maxShared {
		return base64.StdEncoding.AppendEncode(nil, packed), nil
	}
	return nil, nil
}

// Received unpacks what Share made, on another machine perhaps.
func Received(data []byte) (Build, error) {
	z, err := zstd.NewReader(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(data)), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlain))
	if err != nil {
		return Build{}, err
	}
	defer z.Close()
	plain, err := io.ReadAll(io.LimitReader(z, maxPlain))
	var s shared
	if err == nil {
		err = json.Unmarshal(plain, &s)
	}
	if err != nil {
		return Build{}, fmt.Errorf("record of a build: %w", err)
	}
	for _, step := range s.Steps {
		for _, in := range step.Inputs {
			if in.Step >= len(s.Steps) {
				return Build{}, errors.New("record of a build: damaged")
			}
		}
	}
	return Build{Ref: s.Ref, Attrs: s.Attrs, Steps: s.Steps, Files: func(d digest.Digest) (io.ReadCloser, error) {
		data, ok := s.Files[d]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}}, nil
}

// Alike reports whether half of the steps of a build are in the other, so that
// to compare them tells something.
func Alike(now, other Build) bool { return alike(now.Steps, other.Steps) }
