package compress

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// sample is text-like, in parts random and in parts zero, and always the same.
func sample(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var text []byte
	for len(text) < 1<<16 {
		text = fmt.Appendf(text, "%c%d ", 'a'+rnd.IntN(26), rnd.IntN(5000))
	}
	b := make([]byte, 0, n+1<<16)
	for len(b) < n {
		switch rnd.IntN(40) {
		case 0:
			b = append(b, make([]byte, rnd.IntN(60000))...)
		case 1:
			for range rnd.IntN(2000) {
				b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
			}
		default:
			for range 20 {
				from := rnd.IntN(len(text))
				b = append(b, text[from:min(from+rnd.IntN(200), len(text))]...)
			}
		}
	}
	return b[:n]
}

func pack(t testing.TB, data []byte, o Options) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unpack(t testing.TB, data []byte) []byte {
	t.Helper()
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	data := sample(6<<20, 1)
	for _, a := range []Algorithm{None, Gzip, Zstd} {
		for _, n := range []int{0, 1, 511, minSegment - 1, minSegment, minSegment + 1, maxSegment, len(data)} {
			t.Run(fmt.Sprint(a, n), func(t *testing.T) {
				t.Parallel()
				packed := pack(t, data[:n], Options{Algorithm: a})
				if got := unpack(t, packed); !bytes.Equal(got, data[:n]) {
					t.Errorf("unpacked %d bytes differ from the %d packed", len(got), n)
				}
				switch a {
				case Gzip:
					readByOthers(t, packed, data[:n], func(r io.Reader) (io.Reader, error) {
						z, err := stdgzip.NewReader(r)
						if err == nil {
							z.Multistream(false) // one member
						}
						return z, err
					}, "gzip", "-t")
				case Zstd:
					readByOthers(t, packed, data[:n], func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) }, "zstd", "-t", "-q")
				}
			})
		}
	}
}

func readByOthers(t *testing.T, packed, want []byte, open func(io.Reader) (io.Reader, error), tool ...string) {
	t.Helper()
	in := bytes.NewReader(packed)
	r, err := open(in)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("another reader got %d bytes of %d, %v", len(got), len(want), err)
	}
	if in.Len() != 0 {
		t.Errorf("another reader left %d bytes", in.Len())
	}
	if _, err := exec.LookPath(tool[0]); err != nil {
		return
	}
	cmd := exec.Command(tool[0], tool[1:]...)
	cmd.Stdin = bytes.NewReader(packed)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", tool, err, out)
	}
}

// The bytes depend on nothing but input, algorithm, level and Version.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	data := sample(8<<20, 2)
	for _, o := range []Options{{}, {Level: 1}, {Level: 9}, {Algorithm: Zstd}, {Algorithm: Zstd, Level: 1}} {
		t.Run(fmt.Sprint(o.Algorithm, o.Level), func(t *testing.T) {
			t.Parallel()
			data := data
			if o.Level == 9 {
				data = data[:2<<20]
			}
			o.Workers = 1
			want := pack(t, data, o)
			for _, workers := range []int{0, 3, 100} {
				o.Workers = workers
				if !bytes.Equal(pack(t, data, o), want) {
					t.Errorf("other bytes with %d workers", workers)
				}
			}
			cache := openCache(t)
			for _, state := range []string{"cold", "warm"} {
				got, n := cache.pack(t, data, o)
				if !bytes.Equal(got, want) {
					t.Errorf("other bytes with a %s cache", state)
				}
				if state == "warm" && n > 0 {
					t.Errorf("%d segments were not found", n)
				}
			}
			o.Segments = cache.SegmentCache
			var out bytes.Buffer
			w, err := NewWriter(&out, o)
			if err != nil {
				t.Fatal(err)
			}
			rnd := rand.New(rand.NewPCG(3, 3))
			for rest := data; len(rest) > 0; {
				n := min(rnd.IntN(1<<rnd.IntN(22)), len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), want) {
				t.Error("other bytes with other writes")
			}
		})
	}
}

// If this fails after an update of the encoders, Version must go up: caches and
// registries hold segments and layers that would have other bytes now.
func TestGolden(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 4)
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "fccd59d3d3668fc6"},
		{Options{Level: 1}, "7c336b57aa1beee3"},
		{Options{Level: 9}, "288f11f3fa27dd6a"},
		{Options{Algorithm: Zstd}, "378d68fe39daf2a3"},
		{Options{Algorithm: Zstd, Level: 19}, "b9822aef585b736a"},
		{Options{Level: LevelZero}, "4a32ad6d01d034bf"},
		{Options{Algorithm: Zstd, Level: LevelZero}, "384530438f434508"},
	} {
		sum := sha256.Sum256(pack(t, data, c.o))
		if got := hex.EncodeToString(sum[:8]); got != c.want {
			t.Errorf("%s level %d: got %s, want %s: see Version", c.o.Algorithm, c.o.Level, got, c.want)
		}
	}
}

// An encoder must not be influenced by what it compressed before: which worker
// gets which segment is chance.
func TestEncoderReuse(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"gzip 1", "gzip 5", "gzip 6", "gzip 9", "zstd 1", "zstd 2", "zstd 3"} {
		t.Run(a, func(t *testing.T) {
			t.Parallel()
			var level int
			var name string
			fmt.Sscan(a, &name, &level)
			newEncoder := func() encoder {
				e, err := newGzipEncoder(level)
				if name == "zstd" {
					e, err = newZstdEncoder(zstd.EncoderLevel(level))
				}
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			used := newEncoder()
			rnd := rand.New(rand.NewPCG(5, uint64(level)))
			data := sample(2<<20, 6)
			for i := range 30 {
				from := rnd.IntN(len(data))
				src := data[from : from+rnd.IntN(min(len(data)-from, 1<<rnd.IntN(20))+1)]
				got, err := used.encode(nil, src)
				if err != nil {
					t.Fatal(err)
				}
				want, err := newEncoder().encode(nil, src)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("segment %d of %d bytes: a used encoder compressed it otherwise", i, len(src))
				}
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Level: 10}, "compression level 10: want 0 to 9 for gzip"},
		{Options{Level: -2}, "compression level -2: want 0 to 9 for gzip"},
		{Options{Algorithm: Zstd, Level: 23}, "compression level 23: want 0 to 22 for zstd"},
		{Options{Algorithm: None, Level: 1}, "compression level 1: uncompressed has no levels"},
		{Options{Algorithm: "lz4"}, `unknown compression "lz4": want gzip, zstd or uncompressed`},
	} {
		if _, err := NewWriter(io.Discard, c.o); err == nil || err.Error() != c.want {
			t.Errorf("%+v: got %v, want %s", c.o, err, c.want)
		}
	}
}

type failAfter struct{ n int }

var errFull = errors.New("disk full")

func (f *failAfter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	t.Parallel()
	data := sample(12<<20, 7)
	for _, n := range []int{0, 100, 1 << 20} {
		w, err := NewWriter(&failAfter{n}, Options{Level: 1})
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data) // may or may not see it
		if err := w.Close(); !errors.Is(err, errFull) {
			t.Errorf("room for %d: Close gives %v", n, err)
		}
		if _, err := w.Write(data); err == nil {
			t.Error("Write after Close succeeds")
		}
	}
}

func TestMediaType(t *testing.T) {
	t.Parallel()
	for a, want := range map[Algorithm]string{
		"":   "application/vnd.oci.image.layer.v1.tar+gzip",
		Gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
		Zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
		None: "application/vnd.oci.image.layer.v1.tar",
		"xz": "",
	} {
		if got := a.MediaType(); got != want {
			t.Errorf("%q: got %q, want %q", a, got, want)
		}
	}
}

// cuts returns the sizes of the segments of data, shown in pieces.
func cuts(data []byte, piece func() int) []int {
	var c cutter
	var sizes []int
	n := 0
	for len(data) > 0 {
		p := data[:min(piece(), len(data))]
		used, cut := c.next(p)
		n += used
		data = data[used:]
		if cut {
			sizes = append(sizes, n)
			n = 0
		}
	}
	if n > 0 {
		sizes = append(sizes, n)
	}
	return sizes
}

func TestCut(t *testing.T) {
	t.Parallel()
	data := sample(32<<20, 8)
	want := cuts(data, func() int { return len(data) })
	for i, n := range want {
		if n > maxSegment || n < minSegment && i < len(want)-1 {
			t.Errorf("segment %d has %d bytes", i, n)
		}
	}
	if avg := len(data) / len(want); avg < 800<<10 || avg > 2<<20 {
		t.Errorf("segments have %d bytes on average", avg)
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	if got := cuts(data, func() int { return 1 + rnd.IntN(100000) }); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("in pieces: got %v, want %v", got, want)
	}
	if got := cuts(make([]byte, 10<<20), func() int { return 1 << 20 }); len(got) > 40 {
		t.Errorf("zeros are cut into %v", got)
	}

	// After an insertion the old cuts are found again.
	changed := append(append(append([]byte{}, data[:10<<20]...), "inserted"...), data[10<<20:]...)
	old := map[string]bool{}
	for rest, sizes := data, want; len(sizes) > 0; sizes = sizes[1:] {
		sum := sha256.Sum256(rest[:sizes[0]])
		old[string(sum[:])] = true
		rest = rest[sizes[0]:]
	}
	fresh := 0
	rest := changed
	for _, n := range cuts(changed, func() int { return len(changed) }) {
		if sum := sha256.Sum256(rest[:n]); !old[string(sum[:])] {
			fresh += n
		}
		rest = rest[n:]
	}
	if fresh > 3*maxSegment {
		t.Errorf("8 bytes more make %d bytes of new segments", fresh)
	}
}

// plainCuts are the cuts as they are defined, looked for byte by byte.
func plainCuts(data []byte) (sizes []int) {
	n, h := 0, uint64(0)
	for _, b := range data {
		n++
		h = h<<1 + gear[b]
		if n > minSegment && h < limit || n == maxSegment {
			sizes = append(sizes, n)
			n = 0
		}
	}
	if n > 0 {
		sizes = append(sizes, n)
	}
	return sizes
}

// search finds what searchPlain finds, wherever cuts are.
func TestSearch(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(30, 1))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	// What has a cut at its end, and nowhere else.
	var mark []byte
	for mark == nil {
		b := random(1 << 20)
		if at, _ := searchPlain(0, b[window:]); at >= window {
			mark = b[at+1 : window+at+1]
		}
	}
	found := map[bool]int{}
	for range 20000 {
		p := random(rnd.IntN(8 * window))
		for range rnd.IntN(4) {
			if room := len(p) - window; room >= 0 {
				copy(p[rnd.IntN(room+1):], mark)
			}
		}
		h := rnd.Uint64()
		if rnd.IntN(4) == 0 { // the mark begins before p
			n := rnd.IntN(window)
			h = roll(h, mark[:n])
			copy(p, mark[n:])
		}
		at, after := search(h, p)
		wantAt, wantAfter := searchPlain(h, p)
		if at != wantAt || after != wantAfter {
			t.Fatalf("%d bytes: got %d and %x, want %d and %x", len(p), at, after, wantAt, wantAfter)
		}
		found[at >= 0]++
	}
	if found[true] < 1000 || found[false] < 1000 {
		t.Errorf("%d with cuts and %d without", found[true], found[false])
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"), 3, byte(1))
	f.Add([]byte{}, 1, byte(0))
	f.Add(sample(4000, 1), 700, byte(9))
	f.Fuzz(func(t *testing.T, data []byte, times int, level byte) {
		// Long streams have several segments.
		data = bytes.Repeat(data, 1+max(times, 0)%1000)
		if len(data) > 3<<20 {
			data = data[:3<<20]
		}
		for _, a := range []Algorithm{Gzip, Zstd} {
			o := Options{Algorithm: a, Level: int(level) % 10, Workers: 2}
			packed := pack(t, data, o)
			if !bytes.Equal(unpack(t, packed), data) {
				t.Errorf("%s: other bytes came back", a)
			}
		}
	})
}

func FuzzCut(f *testing.F) {
	f.Add(sample(3000, 1), uint64(1), 300)
	f.Add([]byte{0}, uint64(2), 1000)
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, times int) {
		data = bytes.Repeat(data, 1+max(times, 0)%2000)
		if len(data) > 8<<20 {
			data = data[:8<<20]
		}
		whole := cuts(data, func() int { return len(data) })
		total := 0
		for i, n := range whole {
			total += n
			if n > maxSegment || n < minSegment && i < len(whole)-1 {
				t.Errorf("segment %d has %d bytes", i, n)
			}
		}
		if total != len(data) {
			t.Errorf("segments have %d bytes of %d", total, len(data))
		}
		if want := plainCuts(data); fmt.Sprint(whole) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", whole, want)
		}
		rnd := rand.New(rand.NewPCG(seed, 1))
		if got := cuts(data, func() int { return 1 + rnd.IntN(1<<rnd.IntN(20)) }); fmt.Sprint(got) != fmt.Sprint(whole) {
			t.Errorf("in pieces: got %v, want %v", got, whole)
		}
	})
}

// corpus is what the benchmarks compress: the tar of a file tree if one is
// named, so that figures can be compared with other tools'.
func corpus(b *testing.B) []byte {
	if name := os.Getenv("STRAKE_BENCH_CORPUS"); name != "" {
		data, err := os.ReadFile(filepath.Clean(name))
		if err != nil {
			b.Fatal(err)
		}
		return data
	}
	return sample(64<<20, 10)
}

func BenchmarkWriter(b *testing.B) {
	data := corpus(b)
	for _, o := range []Options{{Level: 1}, {Level: 3}, {}, {Level: 6}, {Algorithm: Zstd, Level: 1}, {Algorithm: Zstd}} {
		for _, state := range []string{"none", "cold", "warm"} {
			b.Run(fmt.Sprintf("%s%d/%s", o.Algorithm, o.Level, state), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				o := o
				if state != "none" {
					cache := openCache(b)
					if state == "warm" {
						cache.pack(b, data, o)
					}
					o.Segments = cache.SegmentCache // that nothing is added to
				}
				var n int
				for b.Loop() {
					count := &counter{}
					w, err := NewWriter(count, o)
					if err != nil {
						b.Fatal(err)
					}
					w.Write(data)
					if err := w.Close(); err != nil {
						b.Fatal(err)
					}
					n = count.n
				}
				b.ReportMetric(float64(n)/float64(len(data)), "ratio")
			})
		}
	}
	b.Run("stdlib6", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			count := &counter{}
			w := stdgzip.NewWriter(count)
			w.Write(data)
			w.Close()
			b.ReportMetric(float64(count.n)/float64(len(data)), "ratio")
		}
	})
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

func BenchmarkCut(b *testing.B) {
	data := corpus(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		cuts(data, func() int { return 128 << 10 })
	}
}
