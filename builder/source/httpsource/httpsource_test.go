package httpsource

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

// server serves one file, with an ETag, and counts how often it sent it.
type server struct {
	*httptest.Server
	content atomic.Pointer[[]byte]
	sent    atomic.Int32
}

func newServer(t *testing.T, content string) *server {
	s := &server{}
	s.set(content)
	mux := http.NewServeMux()
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		data := *s.content.Load()
		tag := fmt.Sprintf("%q", digest.FromBytes(data).Encoded()[:8])
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Method == http.MethodGet {
			s.sent.Add(1)
		}
		_, _ = w.Write(data)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/file", http.StatusFound) })
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("not so much"))
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(content string) {
	b := []byte(content)
	s.content.Store(&b)
}

func open(t *testing.T, dir string, o Options) *Client {
	t.Helper()
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFetch(t *testing.T) {
	t.Parallel()
	s := newServer(t, "hello")
	dir := t.TempDir()
	ctx := context.Background()
	for _, tt := range []struct {
		op   plan.HTTP
		mode uint32
	}{
		{plan.HTTP{URL: s.URL + "/file", Filename: "f"}, 0o600},
		{plan.HTTP{URL: s.URL + "/moved", Filename: "f", Mode: 0o4755, UID: 3, GID: 4}, 0o4755},
		{plan.HTTP{URL: s.URL + "/file", Filename: "f", Checksum: digest.FromString("hello")}, 0o600},
		{plan.HTTP{URL: s.URL + "/file", Filename: "f", Checksum: digest.SHA512.FromString("hello")}, 0o600},
	} {
		got, err := open(t, dir, Options{}).Fetch(ctx, &tt.op, t.TempDir())
		if err != nil {
			t.Fatalf("%+v: %v", tt.op, err)
		}
		e := got[0]
		data, err := os.ReadFile(e.Origin.Staged)
		if err != nil || string(data) != "hello" {
			t.Errorf("content %q, %v", data, err)
		}
		if len(got) != 1 || e.Path != "f" || e.Mode != tt.mode || e.UID != tt.op.UID || e.GID != tt.op.GID || e.Size != 5 || e.Digest != digest.FromString("hello") {
			t.Errorf("entry %+v", e)
		}
	}
}

func TestUnchangedIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t, "one")
	dir := t.TempDir()
	op := &plan.HTTP{URL: s.URL + "/file", Filename: "f"}
	ctx := context.Background()
	resolve := func(want string, sent int32) {
		t.Helper()
		d, err := open(t, dir, Options{}).Resolve(ctx, op)
		if err != nil || d != digest.FromString(want) {
			t.Fatalf("got %s, %v; want the digest of %q", d, err, want)
		}
		if n := s.sent.Load(); n != sent {
			t.Fatalf("the file was sent %d times, want %d", n, sent)
		}
	}
	resolve("one", 1)
	resolve("one", 1)
	s.set("two")
	resolve("two", 2)
	// What Resolve fetched is not fetched again.
	if _, err := open(t, dir, Options{}).Fetch(ctx, op, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	resolve("two", 2)
	// A second Fetch has to.
	if _, err := open(t, dir, Options{}).Fetch(ctx, op, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	resolve("two", 3)
	// Nor is what is damaged believed.
	memos, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(memos) != 1 {
		t.Fatal(memos, err)
	}
	if err := os.WriteFile(memos[0], []byte(`{"url":`), 0o600); err != nil {
		t.Fatal(err)
	}
	resolve("two", 4)
}

func TestDamagedFileIsFetchedAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t, "one")
	dir := t.TempDir()
	op := &plan.HTTP{URL: s.URL + "/file", Filename: "f"}
	c := open(t, dir, Options{})
	d, err := c.Resolve(context.Background(), op)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.file(d), []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := c.Fetch(context.Background(), op, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(got[0].Origin.Staged); string(data) != "one" {
		t.Errorf("got %q", data)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	s := newServer(t, strings.Repeat("x", 1000))
	for _, tt := range []struct {
		name string
		op   plan.HTTP
		want string
	}{
		{"missing", plan.HTTP{URL: s.URL + "/none", Filename: "f"}, "404"},
		{"endless redirects", plan.HTTP{URL: s.URL + "/loop", Filename: "f"}, "redirects"},
		{"cut short", plan.HTTP{URL: s.URL + "/short", Filename: "f"}, "unexpected EOF"},
		{"too large", plan.HTTP{URL: s.URL + "/file", Filename: "f"}, "limit of 500"},
		{"other checksum", plan.HTTP{URL: s.URL + "/short", Filename: "f", Checksum: digest.FromString("y")}, "unexpected EOF"},
		{"no URL", plan.HTTP{URL: "http://", Filename: "f"}, "not an http"},
		{"file URL", plan.HTTP{URL: "file:///etc/passwd", Filename: "f"}, "not an http"},
		{"name that leaves", plan.HTTP{URL: s.URL + "/file", Filename: "../f"}, "name of a file"},
		{"no name", plan.HTTP{URL: s.URL + "/file"}, "name of a file"},
		{"password", plan.HTTP{URL: strings.Replace(s.URL, "//", "//me:secret@", 1) + "/none", Filename: "f"}, "me:xxxxx@"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_, err := open(t, dir, Options{MaxSize: 500}).Fetch(context.Background(), &tt.op, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "files")); len(left) > 0 {
				t.Errorf("%d files left", len(left))
			}
		})
	}
	op := plan.HTTP{URL: s.URL + "/file", Filename: "f", Checksum: digest.FromString("y")}
	_, err := open(t, t.TempDir(), Options{}).Fetch(context.Background(), &op, t.TempDir())
	want := digest.FromBytes(bytes.Repeat([]byte("x"), 1000)).String()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want the checksum %s", err, want)
	}
}
