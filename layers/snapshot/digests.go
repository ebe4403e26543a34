package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"weak"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
)

const rawDigestSize = sha256.Size

func rawDigest(d digest.Digest) (raw [rawDigestSize]byte, err error) {
	hexed, ok := strings.CutPrefix(string(d), "sha256:")
	if ok && len(hexed) == 2*rawDigestSize {
		if _, err := hex.Decode(raw[:], []byte(hexed)); err == nil {
			return raw, nil
		}
	}
	return raw, fmt.Errorf("digest %q: not a sha256 digest", d)
}

func hexDigest(raw []byte) digest.Digest {
	var buf [len("sha256:") + 2*rawDigestSize]byte
	return digest.Digest(hex.AppendEncode(append(buf[:0], "sha256:"...), raw))
}

// memo holds the digests of a layer's files that were hashed once; the files
// never change. layers/<id>/digests has a line for each: the digest, the quoted
// path, and the CRC-32C of both, so that a torn line is none. A layer that was
// made of a recipe has them there.
type memo struct {
	path   string
	recipe func() (*recipe, error) // nil without one

	mu      sync.Mutex
	loaded  bool
	made    *recipe
	digests map[string][rawDigestSize]byte
}

// memo returns the memo of a layer. Those in use are shared.
func (s *Store) memo(id layers.ID, k known) *memo {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.memos[id].Value()
	if m == nil {
		m = &memo{path: s.path(id, digestsFile)}
		if k.recipe {
			m.recipe = func() (*recipe, error) { return s.recipe(id) }
		}
		s.memos[id] = weak.Make(m)
	}
	return m
}

// maxDigestsFile bounds a memo.
const maxDigestsFile = 1 << 30

// get returns a digest that is remembered.
func (m *memo) get(path string) (digest.Digest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.loaded {
		m.load()
	}
	if raw, ok := m.digests[path]; ok {
		return hexDigest(raw[:]), true
	}
	if m.made != nil {
		e, err := m.made.Stat(path)
		return e.Digest, err == nil && e.Digest != ""
	}
	return "", false
}

// load reads what is on the disk. What can't be read is not remembered.
func (m *memo) load() {
	m.loaded = true
	if m.recipe != nil {
		m.made, _ = m.recipe()
	}
	data, _ := readFile(m.path, maxDigestsFile)
	m.digests = map[string][rawDigestSize]byte{}
	for line := range strings.Lines(string(data)) {
		if path, d, ok := parseDigestLine(line); ok {
			m.digests[path] = d
		}
	}
}

// put remembers a digest.
func (m *memo) put(path string, d digest.Digest) error {
	raw, err := rawDigest(d)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.digests != nil {
		m.digests[path] = raw
	}
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(digestLine(path, d))
	return errors.Join(err, f.Close())
}

func digestLine(path string, d digest.Digest) string {
	text := string(d) + " " + strconv.QuoteToASCII(path)
	return fmt.Sprintf("%s %08x\n", text, crc32.Checksum([]byte(text), crcTable))
}

func parseDigestLine(line string) (path string, raw [rawDigestSize]byte, ok bool) {
	line, ok = strings.CutSuffix(line, "\n")
	i := strings.LastIndexByte(line, ' ')
	if !ok || i < 0 {
		return "", raw, false
	}
	text := line[:i]
	if fmt.Sprintf("%08x", crc32.Checksum([]byte(text), crcTable)) != line[i+1:] {
		return "", raw, false
	}
	hexed, quoted, _ := strings.Cut(text, " ")
	path, err := strconv.Unquote(quoted)
	if err != nil {
		return "", raw, false
	}
	raw, err = rawDigest(digest.Digest(hexed))
	return path, raw, err == nil
}

// hashFile returns the digest of the regular file at path.
func hashFile(ctx context.Context, path string) (digest.Digest, error) {
	f, err := layerdir.OpenFile(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return "", err
	}
	return hexDigest(h.Sum(nil)), nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
