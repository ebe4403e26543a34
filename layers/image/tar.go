package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// tarWriter writes the files of an archive, all of 1970, and each directory before
// the first file in it.
type tarWriter struct {
	w      *bufio.Writer
	dirs   map[string]bool // that are written
	buffer []byte
}

func newTarWriter(w io.Writer) *tarWriter {
	return &tarWriter{bufio.NewWriterSize(w, 256<<10), map[string]bool{}, make([]byte, 256<<10)}
}

// headerSize is the size of the header of a blob named by its SHA-256, in bytes.
const headerSize = 512

// tarHeader is the header of a file, or of a directory if the name ends with /.
func tarHeader(name string, size int64) ([]byte, error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: size, ModTime: time.Unix(0, 0)}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	// Eleven octal digits are not enough. The other way, PAX, has more headers.
	if size >= 1<<33 {
		h.Format = tar.FormatGNU
	}
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(h)
	return b.Bytes(), err
}

// enter returns the directories of a file that are not yet written; from now on
// they are.
func (t *tarWriter) enter(name string) []string {
	var missing []string
	for i, c := range name {
		if dir := name[:i+1]; c == '/' && !t.dirs[dir] {
			t.dirs[dir] = true
			missing = append(missing, dir)
		}
	}
	return missing
}

// parents writes the directories of a file that are missing.
func (t *tarWriter) parents(name string) error {
	for _, dir := range t.enter(name) {
		if err := t.header(dir, 0); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) header(name string, size int64) error {
	h, err := tarHeader(name, size)
	if err != nil {
		return err
	}
	_, err = t.w.Write(h)
	return err
}

func (t *tarWriter) file(ctx context.Context, f file) error {
	if err := t.parents(f.name); err != nil {
		return err
	}
	if err := t.header(f.name, f.desc.Size); err != nil {
		return err
	}
	if err := f.copy(ctx, t.w, t.buffer); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return t.pad(f.desc.Size)
}

// pad writes what is behind a file of size bytes.
func (t *tarWriter) pad(size int64) error {
	_, err := t.w.Write(make([]byte, -size&511))
	return err
}

// close writes the end marks.
func (t *tarWriter) close() error {
	if err := tar.NewWriter(t.w).Close(); err != nil {
		return err
	}
	return t.w.Flush()
}
