package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// entry is an entry of an archive in a test.
type entry struct {
	name, data, link, hard string
	char, dir              bool
	mode                   int64
}

func tarOf(t *testing.T, entries []entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Size: int64(len(e.data)), Mode: e.mode}
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.hard
		case e.char:
			h.Typeflag = tar.TypeChar
		case e.dir:
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestUntar(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := untar(t.Context(), dir, tarOf(t, []entry{
		{name: "./", dir: true, mode: 0o755},
		{name: "./Dockerfile", data: "FROM x", mode: 0o644},
		{name: "deep/in/it", data: "1", mode: 0o755},
		{name: "deep", dir: true, mode: 0o555},
		{name: "deep/later", data: "2", mode: 0},
		{name: "twice", data: "first", mode: 0o644},
		{name: "twice", data: "second", mode: 0o644},
		{name: "soft", link: "Dockerfile"},
		{name: "hard", hard: "./Dockerfile"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"Dockerfile": "FROM x", "deep/in/it": "1", "deep/later": "2", "twice": "second", "soft": "FROM x", "hard": "FROM x"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "deep/in/it")); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("mode of a file: %v, %v", fi.Mode(), err)
	}
}

// TestArchiveLinks has links in a context that somebody else made.
func TestArchiveLinks(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file    string
		entries []entry
		want    string // the build file, or nothing for an error
	}{
		"a link within":     {"", []entry{{name: "sub/real", data: "FROM x"}, {name: "Dockerfile", link: "sub/real"}}, "FROM x"},
		"a link out":        {"", []entry{{name: "Dockerfile", link: outside}}, ""},
		"a way out":         {"up/outside", []entry{{name: "up", link: filepath.Dir(outside)}}, ""},
		"dots":              {"../../" + outside, []entry{{name: "Dockerfile", data: "FROM x"}}, ""},
		"an ignore file":    {"", []entry{{name: "Dockerfile", data: "FROM x"}, {name: ".dockerignore", link: outside}}, ""},
		"its own ignore":    {"", []entry{{name: "Dockerfile", data: "FROM x"}, {name: "Dockerfile.dockerignore", link: outside}}, ""},
		"another file":      {"sub/file", []entry{{name: "sub/file", data: "FROM y"}}, "FROM y"},
		"a small letter":    {"", []entry{{name: "dockerfile", data: "FROM z"}}, "FROM z"},
		"a directory of it": {"", []entry{{name: "Dockerfile", dir: true}}, ""},
	} {
		dir := t.TempDir()
		if _, err := untar(t.Context(), dir, tarOf(t, c.entries)); err != nil {
			t.Fatal(err)
		}
		in := &inputs{}
		err := in.readDockerfile(c.file, dir, true, nil)
		if c.want == "" {
			if err == nil || bytes.Contains([]byte(err.Error()), []byte("secret")) {
				t.Errorf("%s: %q, %v", name, in.dockerfile, err)
			}
		} else if err != nil || string(in.dockerfile) != c.want {
			t.Errorf("%s: %q, %v", name, in.dockerfile, err)
		}
	}
}

func TestIsTar(t *testing.T) {
	t.Parallel()
	head := tarOf(t, []entry{{name: "x", data: "y"}}).Bytes()[:512]
	for name, c := range map[string]struct {
		head []byte
		want bool
	}{
		"an archive":   {head, true},
		"an empty one": {make([]byte, 512), true},
		"a short text": {[]byte("FROM scratch\n"), false},
		"a long text":  {bytes.Repeat([]byte("RUN x\n"), 200), false},
		"nothing":      {nil, false},
	} {
		if got := isTar(c.head); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
