package builds

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// What a step uses of a directory or another step is a list of files. A list is
// kept in "files-<digest>", named by the content digest that the step's key has
// of them; builds that have the same list share it by hard links. Each file is a
// line, compressed:
//
//	<type><mode> <uid> <gid> <sum> <quoted path>

// File is a file in a list. Of two lists, files of one path can be compared.
type File struct {
	Path     string
	Type     string // of a tar header: "0" is a regular file, "2" a symlink, "5" a directory
	Mode     uint32
	UID, GID int    // -1 if owners don't count
	Sum      string // stands for the content
}

// FilesName is the name of the file with the list that d stands for.
func FilesName(d digest.Digest) string { return "files-" + d.Encoded() }

// lookBack is how many builds are searched for a list that is needed again.
const lookBack = 10

// HasFiles reports whether the list that d stands for is kept: this build then
// keeps it, too.
func (b *Build) HasFiles(d digest.Digest) bool {
	if d.Validate() != nil {
		return false
	}
	to := filepath.Join(b.record.Dir, FilesName(d))
	if _, err := os.Lstat(to); err == nil {
		return true
	}
	for _, name := range b.recent() {
		if err := os.Link(filepath.Join(b.store.dir, name, FilesName(d)), to); err == nil || errors.Is(err, fs.ErrExist) {
			return true
		}
	}
	return false
}

// recent are the last builds before this one.
func (b *Build) recent() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = []string{}
		names, _ := b.store.names()
		for _, name := range names {
			if name != filepath.Base(b.record.Dir) && len(b.last) < lookBack {
				b.last = append(b.last, name)
			}
		}
	}
	return b.last
}

// KeepFiles keeps the list that d stands for, which fn writes.
func (b *Build) KeepFiles(d digest.Digest, fn func(*FileWriter) error) (err error) {
	if err := d.Validate(); err != nil {
		return err
	}
	f, err := b.store.root.TempFile("files")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), filepath.Join(b.record.Dir, FilesName(d)))
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
	if err != nil {
		return err
	}
	w := &FileWriter{w: bufio.NewWriterSize(z, 64<<10)}
	return errors.Join(fn(w), w.w.Flush(), z.Close())
}

// FileWriter writes a list.
type FileWriter struct {
	w   *bufio.Writer
	buf []byte
}

// Add adds a file to the list.
func (w *FileWriter) Add(f File) error {
	b := append(w.buf[:0], f.Type...)
	b = strconv.AppendUint(b, uint64(f.Mode), 8)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(f.UID), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(f.GID), 10)
	b = append(append(b, ' '), f.Sum...)
	b = append(b, ' ')
	b = strconv.AppendQuote(b, f.Path)
	w.buf = append(b, '\n')
	_, err := w.w.Write(w.buf)
	return err
}

// Files opens the list that d stands for, for ReadFiles and CompareFiles. There
// may be none: the error is fs.ErrNotExist then.
func (r Record) Files(d digest.Digest) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(r.Dir, FilesName(d)))
}

// ReadFiles reads a list.
func ReadFiles(r io.Reader, fn func(File) error) error {
	l, err := readLines(r)
	if err != nil {
		return err
	}
	defer l.z.Close()
	for {
		line, err := l.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		file, err := parseFile(string(line))
		if err != nil {
			return err
		}
		if err := fn(file); err != nil {
			return err
		}
	}
}

// CompareFiles returns the files that only one of two lists has, in no order. A
// file that differs is in both results. Lines that both lists have are not
// looked into: most of them, where few files of many have changed.
func CompareFiles(a, b io.Reader) (onlyA, onlyB []File, err error) {
	var lists [2]*lines
	for i, r := range []io.Reader{a, b} {
		if lists[i], err = readLines(r); err != nil {
			return nil, nil, err
		}
		defer lists[i].z.Close()
	}
	// Lines that were met in one list and not, or not yet, in the other one.
	only := [2]map[string]bool{{}, {}}
	for open := 2; open > 0; {
		var line [2][]byte
		open = 0
		for i, l := range lists {
			line[i], err = l.next()
			if err != nil && err != io.EOF {
				return nil, nil, err
			}
			if err == nil {
				open++
			}
		}
		if bytes.Equal(line[0], line[1]) {
			continue
		}
		for i := range line {
			switch {
			case line[i] == nil:
			case only[1-i][string(line[i])]:
				delete(only[1-i], string(line[i]))
			default:
				only[i][string(line[i])] = true
			}
		}
	}
	var files [2][]File
	for i := range only {
		for line := range only[i] {
			f, err := parseFile(line)
			if err != nil {
				return nil, nil, err
			}
			files[i] = append(files[i], f)
		}
	}
	return files[0], files[1], nil
}

// lines are those of a list. z has to be closed.
type lines struct {
	z *zstd.Decoder
	r *bufio.Reader
}

func readLines(r io.Reader) (*lines, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	return &lines{z, bufio.NewReaderSize(z, 64<<10)}, nil
}

// next returns a line, which is there until the next one is asked for, or
// io.EOF.
func (l *lines) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if err == io.EOF && len(line) == 0 {
		return nil, io.EOF
	}
	if err == nil && len(line) == 1 || err == io.EOF {
		err = errLine
	}
	if err != nil {
		return nil, err
	}
	return line[:len(line)-1], nil
}

var errLine = errors.New("damaged list of files")

func parseFile(line string) (f File, err error) {
	parts := strings.SplitN(line, " ", 5)
	if len(parts) != 5 || len(parts[0]) < 2 {
		return f, errLine
	}
	f.Type, f.Sum = parts[0][:1], parts[3]
	mode, err := strconv.ParseUint(parts[0][1:], 8, 32)
	f.Mode = uint32(mode)
	if err == nil {
		f.UID, err = strconv.Atoi(parts[1])
	}
	if err == nil {
		f.GID, err = strconv.Atoi(parts[2])
	}
	if err == nil {
		f.Path, err = strconv.Unquote(parts[4])
	}
	if err != nil {
		return f, errLine
	}
	return f, nil
}
