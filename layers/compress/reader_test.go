package compress

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdgzip.NewWriter(&b)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func xzed(t testing.TB, data []byte, dict int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.WriterConfig{DictCap: dict, BlockSize: 100_000}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bzipped is `printf 'hello hello hello\n' | bzip2`.
const bzipped = "BZh91AY&SY\xe5\xb5\xf3\t\x00\x00\x04Q\x00\x00\x10@\x00\x02D\xa0\x00!\xb5\x18\x0c\x02\x90i\xc2\xa3\x0b\xb9\"\x9c(Hr\xda\xf9\x84\x80"

func TestReader(t *testing.T) {
	t.Parallel()
	data := sample(1<<20, 30)
	twice := append(bytes.Clone(data), data...)
	zs := pack(t, data, Options{Algorithm: Zstd})
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zs...)
	gz, x := gzipped(t, data), xzed(t, data, 1<<20)
	for _, c := range []struct {
		name, format string
		in, want     []byte
	}{
		{"nothing", "", nil, nil},
		{"short", "", []byte("ab"), []byte("ab")},
		{"plain", "", data, data},
		{"gzip", "gzip", gz, data},
		{"two gzip members", "gzip", append(bytes.Clone(gz), gz...), twice},
		{"zstd", "zstd", zs, data},
		{"zstd after a skippable frame", "zstd", skippable, data},
		{"xz of many blocks", "xz", x, data},
		{"two xz streams with padding", "xz", append(append(bytes.Clone(x), make([]byte, 8)...), x...), twice},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := Detect(c.in[:min(len(c.in), 6)]); got != c.format {
				t.Errorf("detected %q", got)
			}
			in := bytes.NewReader(c.in)
			r, err := NewReader(iotest.HalfReader(in))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("got %d bytes of %d, %v", len(got), len(c.want), err)
			}
			if in.Len() > 0 {
				t.Errorf("%d bytes were not read", in.Len())
			}
		})
	}
}

// What the tools of the same names write.
func TestReaderOfTools(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 31)
	for _, tool := range [][]string{
		{"gzip", "-c"}, {"gzip", "-9c"}, {"bzip2", "-c"}, {"xz", "-c", "-T2", "--block-size=300000"}, {"xz", "-9c"},
		{"xz", "-c", "--check=sha256"}, {"xz", "-c", "--check=none"}, {"zstd", "-c"}, {"zstd", "-c", "--ultra", "-22"},
	} {
		t.Run(strings.Join(tool, " "), func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(tool[0]); err != nil {
				t.Skip(err)
			}
			cmd := exec.Command(tool[0], tool[1:]...)
			cmd.Stdin = bytes.NewReader(data)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if got := unpack(t, packed); !bytes.Equal(got, data) {
				t.Errorf("got %d other bytes", len(got))
			}
		})
	}
}

func TestReaderErrors(t *testing.T) {
	t.Parallel()
	data := sample(1<<20, 32)
	gz, zs, x := pack(t, data, Options{}), pack(t, data, Options{Algorithm: Zstd}), xzed(t, data, 1<<20)
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 0x55
		return b
	}
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"truncated gzip", gz[:len(gz)/2], "decompress gzip: unexpected EOF"},
		{"gzip without trailer", gz[:len(gz)-1], "decompress gzip: unexpected EOF"},
		{"gzip header only", gz[:7], "decompress gzip: unexpected EOF"},
		{"gzip with garbage", append(bytes.Clone(gz), "garbage, garbage"...), "decompress gzip: "},
		{"damaged gzip", flip(gz), "decompress gzip: "},
		{"truncated zstd", zs[:len(zs)/2], "decompress zstd: unexpected EOF"},
		{"damaged zstd", flip(zs), "decompress zstd: "},
		{"truncated xz", x[:len(x)/2], "decompress xz: unexpected EOF"},
		{"damaged xz", flip(x), "decompress xz: "},
		{"truncated bzip2", []byte(bzipped[:20]), "decompress bzip2: unexpected EOF"},
		{"zstd of 256 MiB window", wideZstd(t), "decompress zstd: window size exceeded"},
		{"xz of 128 MiB dictionary", wideXZ(t, data), "decompress xz: it wants more than 64 MiB of memory"},
		{"xz whose second block has a 4 GiB dictionary", wideBlock(t, data), "decompress xz: it wants more than 64 MiB of memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, err := NewReader(bytes.NewReader(c.in))
			if err == nil {
				defer r.Close()
				_, err = io.Copy(io.Discard, r)
			}
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func wideZstd(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(256<<20))
	if err != nil {
		t.Fatal(err)
	}
	w.Write(make([]byte, 3<<20))
	w.Flush() // else it knows that it needs less
	w.Write([]byte("x"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wideXZ changes the first block's header (after the stream's 12 bytes).
func wideXZ(t *testing.T, data []byte) []byte {
	t.Helper()
	b := xzed(t, data, 1<<20)
	widen(t, b[12:], 30)
	return b
}

func wideBlock(t *testing.T, data []byte) []byte {
	t.Helper()
	b := xzed(t, data, 1<<20)
	header := b[12 : 12+(int(b[12])+1)*4]
	second := bytes.Index(b[12+len(header):], header[:2])
	for ; second >= 0; second++ {
		at := b[12+len(header)+second:]
		if h := at[:len(header)]; crc32.ChecksumIEEE(h[:len(h)-4]) == binary.LittleEndian.Uint32(h[len(h)-4:]) {
			widen(t, at, 40)
			return b
		}
	}
	t.Fatal("no second block")
	return nil
}

// widen sets the dictionary in a block header, whose last four bytes are a
// checksum.
func widen(t *testing.T, b []byte, bits byte) {
	t.Helper()
	h := b[:(int(b[0])+1)*4]
	i := bytes.Index(h, []byte{0x21, 1})
	if i < 0 {
		t.Fatal("no LZMA2 filter")
	}
	h[i+2] = bits
	binary.LittleEndian.PutUint32(h[len(h)-4:], crc32.ChecksumIEEE(h[:len(h)-4]))
}

func TestBzip2(t *testing.T) {
	t.Parallel()
	if got := string(unpack(t, []byte(bzipped))); got != "hello hello hello\n" {
		t.Errorf("got %q", got)
	}
}

// The error of the source is the reader's, and Close ends the goroutines while
// nobody reads.
func TestReaderSource(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 33)
	broken := errors.New("connection reset")
	for _, packed := range [][]byte{data, gzipped(t, data), pack(t, data, Options{Algorithm: Zstd})} {
		r, err := NewReader(io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(broken)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		r.Close()

		r, err = NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Error("Read after Close succeeds")
		}
	}
}

func FuzzReader(f *testing.F) {
	data := sample(20_000, 34)
	f.Add(pack(f, data, Options{}))
	f.Add(pack(f, data, Options{Algorithm: Zstd}))
	f.Add(xzed(f, data, 1<<20))
	f.Add([]byte(bzipped))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := NewReader(bytes.NewReader(in))
		if err != nil {
			return
		}
		defer r.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(r, 64<<20))
		if Detect(in) == "" && (err != nil || n != int64(len(in))) {
			t.Errorf("plain: %d bytes of %d, %v", n, len(in), err)
		}
	})
}

// xzGuard must see a stream as the decoder does, however it is read.
func FuzzXZGuard(f *testing.F) {
	data := sample(300_000, 35)
	f.Add(xzed(f, data, 1<<20), 1000)
	f.Add(append(append(xzed(f, data[:1000], 1<<16), make([]byte, 4)...), xzed(f, nil, 1<<16)...), 7)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		g := newXZGuard(bytes.NewReader(in))
		_, whole := io.Copy(io.Discard, g)
		g = newXZGuard(bytes.NewReader(in))
		_, pieces := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{g}, make([]byte, 1+max(piece, 0)%5000))
		if (whole == nil) != (pieces == nil) {
			t.Errorf("whole: %v, in pieces: %v", whole, pieces)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	data := corpus(b)
	for _, o := range []Options{{}, {Algorithm: Zstd}} {
		packed := pack(b, data, o)
		b.Run(string(o.Algorithm), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, err := NewReader(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}
