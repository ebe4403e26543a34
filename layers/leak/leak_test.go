package leak

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const token = "s3cr3t/T0ken+value=42"

// forms are what people make of a token, with what is around it.
func forms() map[string]string {
	j, _ := json.Marshal(`quote "` + token + `" <&>`)
	m := map[string]string{
		"as it is":        "export TOKEN=" + token + "\n",
		"hex":             "x" + hex.EncodeToString([]byte(token)),
		"upper hex":       strings.ToUpper(hex.EncodeToString([]byte(token))) + "x",
		"query":           "https://x/?t=" + url.QueryEscape(token),
		"path":            "https://x/" + url.PathEscape(token) + "/y",
		"lower escapes":   "https://x/?t=" + lowerEscapes(url.QueryEscape(token)),
		"JSON":            string(j),
		"basic auth":      base64.StdEncoding.EncodeToString([]byte("user:" + token)),
		"wrapped in text": strings.Repeat("text ", 1000) + token + strings.Repeat(" text", 1000),
	}
	for i := range 4 {
		for j := range 4 {
			plain := strings.Repeat("a", i) + token + strings.Repeat("b", j)
			m[fmt.Sprintf("base64 %d %d", i, j)] = base64.StdEncoding.EncodeToString([]byte(plain))
			m[fmt.Sprintf("base64url %d %d", i, j)] = base64.RawURLEncoding.EncodeToString([]byte(plain))
		}
	}
	return m
}

func guard(secrets ...string) *Guard {
	g := &Guard{}
	for i, s := range secrets {
		g.Add(fmt.Sprintf("s%d", i), []byte(s))
	}
	return g
}

func TestForms(t *testing.T) {
	t.Parallel()
	g := guard("another-secret-of-some-length", token+"\n")
	for name, text := range forms() {
		m, ok := g.Find([]byte(text))
		if !ok || m.Secret != "s1" {
			t.Errorf("%s: %v, %+v in %q", name, ok, m, text)
			continue
		}
		// However it is written.
		for _, size := range []int{1, 3, 7, 64, 1000} {
			s := g.Search()
			for b := []byte(text); len(b) > 0; {
				n := min(size, len(b))
				s.Write(b[:n])
				b = b[n:]
			}
			if got, ok := s.Found(); !ok || got != m {
				t.Errorf("%s in pieces of %d: %v, %+v; want %+v", name, size, ok, got, m)
			}
		}
	}
}

// What passes a gate is all, or ends before a value that is found, in however
// many pieces it comes.
func TestGate(t *testing.T) {
	t.Parallel()
	g := guard(token)
	before := bytes.Repeat([]byte{'x'}, 1000)
	after := bytes.Repeat([]byte{'y'}, 1000)
	for _, piece := range []int{1, 3, len(token), 700, 5000} {
		for _, value := range []string{token, "not a token"} {
			text := slices.Concat(before, []byte(value), after)
			var out bytes.Buffer
			s := g.Search()
			w := s.Gate(&out)
			for p := range slices.Chunk(text, piece) {
				if n, err := w.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			_, found := s.Found()
			switch {
			case found != (value == token):
				t.Errorf("pieces of %d, %q: found %v", piece, value, found)
			case !found && !bytes.Equal(out.Bytes(), text):
				t.Errorf("pieces of %d: %d of %d bytes passed", piece, out.Len(), len(text))
			case found && !bytes.HasPrefix(before, out.Bytes()):
				t.Errorf("pieces of %d: what passed ends with %q", piece, out.Bytes()[len(before):])
			}
		}
	}
	var out bytes.Buffer
	w := (*Guard)(nil).Search().Gate(&out)
	if _, err := w.Write([]byte("all")); err != nil || out.String() != "all" {
		t.Errorf("no guard: %q, %v", out.String(), err)
	}
}

func TestBeside(t *testing.T) {
	t.Parallel()
	g := guard(token)
	for _, size := range []int{100, 200_000} {
		text := append(bytes.Repeat([]byte{'x'}, size), token...)
		s, h := g.Search(), sha256.New()
		w := s.Beside(h)
		for p := text; len(p) > 0; {
			n := min(len(p), 128<<10)
			if got, err := w.Write(p[:n]); got != n || err != nil {
				t.Fatal(got, err)
			}
			p = p[n:]
		}
		if m, ok := s.Found(); !ok || m.Offset != int64(size) {
			t.Errorf("found %v, %+v", ok, m)
		}
		if want := sha256.Sum256(text); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("what was written beside the search is wrong")
		}
	}
	if w := (*Guard)(nil).Search().Beside(io.Discard); w != io.Discard {
		t.Errorf("%T", w)
	}
}

func TestWhatIsNotSearchedFor(t *testing.T) {
	t.Parallel()
	g := guard("short", "  1234567\n", "")
	if s := g.Search(); s != nil || len(g.Marks()) != 0 {
		t.Error("short values are searched for")
	}
	if _, ok := guard(token).Find([]byte(token[:len(token)-1])); ok {
		t.Error("a part of the value was found")
	}
	var none *Guard
	none.Add("x", []byte(token))
	if _, ok := none.Find([]byte(token)); ok || none.Search() != nil || none.Marks() != nil {
		t.Error("a nil Guard found something")
	}
	if _, ok := none.Search().Found(); ok {
		t.Error("a nil Search found something")
	}
}

// A key of many lines is found whole, and by a line of its base64.
func TestLongValue(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	raw := make([]byte, 1200)
	for i := range raw {
		raw[i] = byte(rnd.Uint32())
	}
	key := "-----BEGIN PRIVATE KEY-----\n" + wrapped(raw, 64) + "-----END PRIVATE KEY-----\n"
	other := "-----BEGIN PRIVATE KEY-----\n" + wrapped(raw[600:], 64) + "-----END PRIVATE KEY-----\n"
	g := guard(key)
	for name, text := range map[string]string{
		"whole":          "x\n" + key,
		"base64":         base64.StdEncoding.EncodeToString([]byte(key)),
		"wrapped base64": wrapped([]byte(key), 76),
	} {
		if _, ok := g.Find([]byte(text)); !ok {
			t.Errorf("%s: not found", name)
		}
	}
	if m, ok := g.Find([]byte(other)); ok {
		t.Errorf("found %+v in another key", m)
	}
}

func wrapped(b []byte, width int) string {
	var out strings.Builder
	for s := base64.StdEncoding.EncodeToString(b); s != ""; {
		n := min(width, len(s))
		out.WriteString(s[:n] + "\n")
		s = s[n:]
	}
	return out.String()
}

func TestRedact(t *testing.T) {
	t.Parallel()
	g := guard(token)
	for _, size := range []int{1, 5, 1 << 20} {
		var out bytes.Buffer
		r := g.Redact(&out)
		text := "a " + token + " b " + hex.EncodeToString([]byte(token)) + token + "\n" + token[:10]
		for b := []byte(text); len(b) > 0; {
			n := min(size, len(b))
			if _, err := r.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		if strings.HasSuffix(out.String(), token[:10]) {
			t.Error("the beginning of a value was not held back")
		}
		r.Flush()
		if want := "a [secret s0] b [secret s0][secret s0]\n" + token[:10]; out.String() != want {
			t.Errorf("in pieces of %d: %q, want %q", size, out.String(), want)
		}
	}
}

func TestMarks(t *testing.T) {
	t.Parallel()
	m := guard(token, "something else").Marks()
	if len(m) != 2 || len(m[0]) != 4 || m[0] == m[1] || Mark([]byte(token+"\n")) == "" || Mark([]byte("x")) != "" {
		t.Errorf("marks %v", m)
	}
}

func FuzzSearch(f *testing.F) {
	f.Add([]byte("xx"+token+"yy"), 3)
	f.Add([]byte(strings.Repeat("a", 300)), 7)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		g := guard(token, "aaaaaaaaab")
		want := bytes.Contains(b, []byte(token)) || bytes.Contains(b, []byte("aaaaaaaaab"))
		s := g.Search()
		size = max(1, size%200)
		for p := b; len(p) > 0; {
			n := min(size, len(p))
			s.Write(p[:n])
			p = p[n:]
		}
		_, found := s.Found()
		if want && !found {
			t.Errorf("not found in %q", b)
		}
		if _, whole := g.Find(b); whole != found {
			t.Errorf("found in pieces: %v, at once: %v", found, whole)
		}
	})
}

// BenchmarkSearch compares the search with what else is done with the bytes of a
// layer: all are hashed, and most are compressed.
func BenchmarkSearch(b *testing.B) {
	const size = 128 << 10      // of what layers.WriteTar writes at once
	text := make([]byte, size)  // words
	noise := make([]byte, size) // as programs and images are
	rnd := rand.New(rand.NewPCG(3, 4))
	words := strings.Fields("the quick brown fox jumps over the lazy dog func return import package string")
	for i := 0; i < len(text); {
		i += copy(text[i:], words[rnd.IntN(len(words))]+" ")
	}
	for i := 0; i < len(noise); i += 8 {
		binary.LittleEndian.PutUint64(noise[i:], rnd.Uint64())
	}
	bench := func(name string, w func() io.Writer) {
		b.Run(name, func(b *testing.B) {
			const rounds = 32
			b.SetBytes(2 * size * rounds)
			for b.Loop() {
				w := w()
				for range rounds {
					w.Write(text)
					w.Write(noise)
				}
			}
		})
	}
	for _, c := range []struct {
		name    string
		secrets []string
	}{
		{"8 bytes", []string{"hunter2!"}},
		{"20 bytes", []string{"AKIA0123456789ABCDEF"}},
		{"a token", []string{"ghp_16C7e42F292c6912E7710c838347Ae178B4a"}},
		{"10 tokens", strings.Fields(tokens(10))},
		{"100 tokens", strings.Fields(tokens(100))},
	} {
		g := guard(c.secrets...)
		bench(c.name, func() io.Writer { return g.Search() })
		bench("sha256, "+c.name+" beside it", func() io.Writer { return g.Search().Beside(sha256.New()) })
	}
	bench("sha256", func() io.Writer { return sha256.New() })
	bench("gzip", func() io.Writer { return gzip.NewWriter(io.Discard) })
}

func tokens(n int) string {
	var out []string
	for i := range n {
		sum := sha256.Sum256([]byte{byte(i)})
		out = append(out, "tok_"+hex.EncodeToString(sum[:12]))
	}
	return strings.Join(out, " ")
}
