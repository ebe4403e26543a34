package layers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The headers are formatted here, not by archive/tar: the bytes are what
// digests, and so caches and registries, depend on, whatever Go version the
// program was built with. They are those of POSIX.1-2017 (pax, "ustar
// Interchange Format"): USTAR headers, preceded by an extended header with the
// values that do not fit.

const blockSize = 512

type block [blockSize]byte

var zeroBlock block

// Largest values of octal fields of 8 and 12 bytes, the last of which is NUL.
const (
	maxOctal8  = 1<<21 - 1
	maxOctal12 = 1<<33 - 1
)

// header is what a tar header tells.
type header struct {
	name, link   string
	flag         byte
	mode         uint32
	uid, gid     int
	size         int64
	mtime        int64 // seconds
	major, minor uint32
	xattrs       map[string]string
}

// appendTo appends the blocks of h to b.
func (h *header) appendTo(b []byte) ([]byte, error) {
	var pax []string // records "key=value", sorted by key
	uid, gid, size, mtime := h.uid, h.gid, h.size, h.mtime
	if gid > maxOctal8 {
		pax, gid = append(pax, "gid="+strconv.Itoa(gid)), 0
	}
	link := h.link
	if len(link) > 100 || !isASCII(link) {
		pax, link = append(pax, "linkpath="+link), fieldOf(link)
	}
	if mtime < 0 || mtime > maxOctal12 {
		pax, mtime = append(pax, "mtime="+strconv.FormatInt(mtime, 10)), 0
	}
	prefix, name, ok := splitUSTAR(h.name)
	if !ok {
		pax, name = append(pax, "path="+h.name), fieldOf(h.name)
	}
	if size > maxOctal12 {
		pax, size = append(pax, "size="+strconv.FormatInt(size, 10)), 0
	}
	if uid > maxOctal8 {
		pax, uid = append(pax, "uid="+strconv.Itoa(uid)), 0
	}
	if len(h.xattrs) > 0 {
		for _, k := range slices.Sorted(maps.Keys(h.xattrs)) {
			if strings.ContainsAny(k, "=\x00") || k == "" {
				return b, fmt.Errorf("extended attribute %q can't be told in a tar stream", k)
			}
			pax = append(pax, "SCHILY.xattr."+k+"="+h.xattrs[k])
		}
		slices.Sort(pax) // "SCHILY" sorts before the others
	}
	if len(pax) > 0 {
		var records []byte
		for _, r := range pax {
			records = appendRecord(records, r)
		}
		x := header{name: "././@PaxHeader", flag: 'x', mode: 0o644, size: int64(len(records))}
		b = x.appendUSTAR(b, "", x.name, "", 0, 0, x.size, 0)
		b = append(b, records...)
		b = append(b, zeroBlock[:padding(x.size)]...)
	}
	return h.appendUSTAR(b, prefix, name, link, uid, gid, size, mtime), nil
}

func (h *header) appendUSTAR(b []byte, prefix, name, link string, uid, gid int, size, mtime int64) []byte {
	start := len(b)
	b = append(b, zeroBlock[:]...)
	f := b[start:]
	copy(f[0:100], name)
	octal(f[100:108], uint64(h.mode))
	octal(f[108:116], uint64(uid))
	octal(f[116:124], uint64(gid))
	octal(f[124:136], uint64(size))
	octal(f[136:148], uint64(mtime))
	copy(f[148:156], "        ") // the checksum counts as blanks
	f[156] = h.flag
	copy(f[157:257], link)
	copy(f[257:265], "ustar\x0000")
	octal(f[329:337], uint64(h.major))
	octal(f[337:345], uint64(h.minor))
	copy(f[345:500], prefix)
	sum := uint64(0)
	for _, c := range f {
		sum += uint64(c)
	}
	octal(f[148:155], sum) // six digits, NUL, blank
	return b
}

// octal fills f with digits, but for the NUL at its end.
func octal(f []byte, v uint64) {
	for i := len(f) - 2; i >= 0; i-- {
		f[i] = '0' + byte(v&7)
		v >>= 3
	}
	f[len(f)-1] = 0
}

// appendRecord appends "length key=value\n", where length counts itself.
func appendRecord(b []byte, r string) []byte {
	n := len(r) + 2
	n += len(strconv.Itoa(n + len(strconv.Itoa(n))))
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, ' ')
	b = append(b, r...)
	return append(b, '\n')
}

// splitUSTAR splits a name into the fields prefix and name if they can hold it.
func splitUSTAR(s string) (prefix, name string, ok bool) {
	if !isASCII(s) {
		return "", "", false
	}
	if len(s) <= 100 {
		return "", s, true
	}
	// The slash between the fields; the one at the end of a directory's name
	// belongs to the name.
	i := strings.LastIndexByte(s[:min(len(s)-1, 156)], '/')
	if i <= 0 || len(s)-i-1 > 100 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// fieldOf is what readers that know no extended headers are shown of s.
func fieldOf(s string) string {
	f := []byte(s[:min(len(s), 100)])
	for i, c := range f {
		if c >= 0x80 {
			f[i] = '_'
		}
	}
	return string(f)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// padding is the number of bytes that follow size bytes up to a whole block.
func padding(size int64) int64 { return -size & (blockSize - 1) }
