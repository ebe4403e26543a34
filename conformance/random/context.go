package random

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// dice makes choices.
type dice struct{ *rand.Rand }

func (d dice) one(list ...string) string { return list[d.IntN(len(list))] }

// in reports true once in n times.
func (d dice) in(n int) bool { return d.IntN(n) == 0 }

// The names of files; the odd ones are seldom.
var (
	plainNames = []string{"a", "b", "c.txt", "d.go", "dir", "sub", "x.tar", "e"}
	oddNames   = []string{"sp ace", "ü", ".hid", "[a]", "a*", "q?", "-n", "back\\slash", "dollar$a", "ab", "a.b.c", "Dockerfile.x", "quo\"te", "t'ick", "hash#", "e\u0301", "...", "c,d", "x=y"}
)

func (d dice) name() string {
	if d.in(6) {
		return d.one(oddNames...)
	}
	return d.one(plainNames...)
}

func (d dice) mode() uint32 {
	return []uint32{0o644, 0o644, 0o600, 0o755, 0o640, 0o4755, 0o444, 0o777, 0o2750, 0o0}[d.IntN(10)]
}

func (d dice) dirMode() uint32 {
	return []uint32{0o755, 0o755, 0o755, 0o700, 0o1777, 0o2755, 0o500}[d.IntN(7)]
}

func (d dice) content() string {
	switch d.IntN(8) {
	case 0:
		return ""
	case 1:
		return strings.Repeat("long\n", 1+d.IntN(3000))
	}
	return d.one("one\n", "two\n", "three", "$A\n", "\x00\x01")
}

// files makes a context.
func (d dice) files() []File {
	dirs := []string{"."}
	taken := map[string]bool{"Dockerfile": true, ".dockerignore": true}
	var files []File
	for range 4 + d.IntN(14) {
		parent := dirs[d.IntN(len(dirs))]
		p := path.Join(parent, d.name())
		if taken[p] || strings.Count(p, "/") > 3 {
			continue
		}
		taken[p] = true
		f := File{Path: p, Type: 'f', Mode: d.mode(), Data: d.content()}
		switch n := d.IntN(20); {
		case n < 6:
			f = File{Path: p, Type: 'd', Mode: d.dirMode()}
			dirs = append(dirs, p)
		case n < 9:
			f = File{Path: p, Type: 'l', Data: d.linkTarget(files)}
		case n < 11:
			if regular := ofType(files, 'f'); len(regular) > 0 {
				f = File{Path: p, Type: 'h', Data: regular[d.IntN(len(regular))]}
			}
		case n < 12 && d.in(2):
			f = File{Path: p, Type: 'p', Mode: 0o644}
		case n < 14:
			f.Data = d.archive()
			if d.in(2) {
				f.Path = path.Join(parent, d.one("arc.tar", "arc.tgz", "arc"))
				if taken[f.Path] {
					continue
				}
				taken[f.Path] = true
			}
		}
		files = append(files, f)
	}
	return files
}

func ofType(files []File, types ...byte) (paths []string) {
	for _, f := range files {
		if slices.Contains(types, f.Type) {
			paths = append(paths, f.Path)
		}
	}
	return paths
}

func (d dice) linkTarget(files []File) string {
	to := d.name()
	if len(files) > 0 && !d.in(3) {
		to = files[d.IntN(len(files))].Path
	}
	return d.one("", "", "/", "../", "./") + to + d.one("", "", "", "/", "/..")
}

// archive makes a tar archive with a few entries.
func (d dice) archive() string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	have := map[string]byte{}
	for range 1 + d.IntN(6) {
		name := d.name()
		if d.in(3) {
			name = "dir/" + name
		}
		if have[name] != 0 || strings.HasPrefix(name, "dir/") && have["dir"] != 0 && have["dir"] != tar.TypeDir {
			continue
		}
		h := &tar.Header{Name: name, Mode: int64(d.mode()), Uid: d.IntN(3) * 500, Gid: d.IntN(2) * 7, ModTime: fileTime, Typeflag: tar.TypeReg}
		content := ""
		switch d.IntN(7) {
		case 0:
			h.Typeflag, h.Mode = tar.TypeDir, int64(d.dirMode())
		case 1:
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, d.one("a", "/b", "../e", "dir"), 0o777
		case 2:
			for other, t := range have {
				if t == tar.TypeReg && len(have) == 1 {
					h.Typeflag, h.Linkname = tar.TypeLink, other
				}
			}
		}
		if h.Typeflag == tar.TypeReg {
			content = d.content()
			h.Size = int64(len(content))
		}
		have[name] = h.Typeflag
		if w.WriteHeader(h) != nil {
			continue
		}
		_, _ = w.Write([]byte(content))
	}
	_ = w.Close()
	if d.in(2) {
		return b.String()
	}
	var z bytes.Buffer
	g := gzip.NewWriter(&z)
	_, _ = g.Write(b.Bytes())
	_ = g.Close()
	return z.String()
}

// pattern is a line of an ignore file, or of --exclude.
func (d dice) pattern(files []File) string {
	p := d.name()
	if len(files) > 0 && d.in(2) {
		p = files[d.IntN(len(files))].Path
	}
	if d.in(3) {
		p = path.Join(path.Dir(p), d.one("*", "?", "*.txt", "*.*", "[a-c]*", "[^a]", "**", "d*"))
	}
	if d.in(4) {
		p = d.one("**/", "*/", "/", "./", "dir/../") + p
	}
	if d.in(8) {
		p += d.one("/", "/*", "/**", "/**/x", " ", "**")
	}
	return p
}

func (d dice) ignore(files []File) (lines []string) {
	if d.in(4) {
		lines = append(lines, d.one("*", "**", "*/*", "dir", "# a comment", "", "."))
	}
	for range d.IntN(5) {
		lines = append(lines, d.one("", "", "!", " ", "! ")+d.pattern(files))
	}
	return lines
}

// labels are those of the command line.
func (d dice) labels() map[string]string {
	if !d.in(6) {
		return nil
	}
	return map[string]string{d.one("l", "com.example/x"): fmt.Sprint(d.IntN(3))}
}
