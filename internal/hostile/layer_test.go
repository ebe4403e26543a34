package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// up leads from anywhere to the root.
var up = strings.Repeat("../", 30)

// layerAttacks are layers of images that are unpacked for a RUN.
func layerAttacks() []attack {
	// unpack builds on an image with these layers. What a step sees of the host's
	// directory is what the image has there.
	unpack := func(layers func(b *bed) [][]entry, run string) func(b *bed) {
		return func(b *bed) {
			var archives [][]byte
			for _, l := range layers(b) {
				archives = append(archives, b.archive(l...))
			}
			b.contained("FROM " + b.image(archives...) + "\nRUN " + strings.ReplaceAll(run, "$HOST", b.host) + "\n")
		}
	}
	one := func(entries func(b *bed) []entry, run string) func(b *bed) {
		return unpack(func(b *bed) [][]entry { return [][]entry{entries(b)} }, run)
	}
	const look = "cat $HOST/secret; ls -lR $HOST; true"
	return []attack{
		{name: "layer/dotdot name", after: "CVE-2014-9356 CVE-2018-8115", outcome: "nothing is written outside of the layer",
			run: one(func(b *bed) []entry {
				return []entry{file(up[:len(up)-1]+b.host+"/pwned", "x"), file("a/"+up+b.token, "x")}
			}, look)},
		{name: "layer/absolute name", after: "CVE-2014-9356", outcome: "it means a path inside the image",
			run: func(b *bed) {
				ref := b.image(b.archive(file(b.host+"/pwned", "x")))
				b.has(b.build("FROM "+ref+"\nRUN cat "+b.host+"/pwned && echo in''side\n"), "inside")
			}},
		{name: "layer/symlink, then a file through it", after: "CVE-2014-9356 CVE-2018-15664", outcome: "the link is not followed",
			run: one(func(b *bed) []entry { return []entry{symlink("x", b.host), file("x/pwned", "x")} }, look)},
		{name: "layer/relative symlink, then a directory through it", after: "CVE-2020-27534 CVE-2026-42574", outcome: "the link is not followed",
			run: one(func(b *bed) []entry {
				return []entry{symlink("x", up[:len(up)-1]+b.host), dir("x/pwned"), file("x/dir/empty", "changed")}
			}, look)},
		{name: "layer/symlink in one layer, file in the next", after: "CVE-2014-9356 CVE-2019-10152", outcome: "the link is not followed",
			run: unpack(func(b *bed) [][]entry {
				return [][]entry{{symlink("x", b.host)}, {file("x/pwned", "x"), file("x/secret", "changed")}}
			}, look)},
		{name: "layer/directory replaced by a symlink", after: "CVE-2018-15664", outcome: "the link is not followed",
			run: one(func(b *bed) []entry {
				return []entry{dir("d"), file("d/f", "1"), symlink("d", b.host), file("d/pwned", "x")}
			}, look)},
		{name: "layer/hard link to an absolute path", after: "CVE-2014-6407", outcome: "no file of the host is linked or read",
			run: one(func(b *bed) []entry { return []entry{hardlink("leak", b.host+"/secret")} }, "cat /leak; true")},
		{name: "layer/hard link with dotdot", after: "CVE-2014-6407 CVE-2026-50163", outcome: "no file of the host is linked or read",
			run: one(func(b *bed) []entry { return []entry{hardlink("leak", up[:len(up)-1]+b.host+"/secret")} }, "cat /leak; true")},
		{name: "layer/hard link through a symlink", after: "CVE-2014-6407", outcome: "no file of the host is linked or read",
			run: one(func(b *bed) []entry { return []entry{symlink("x", b.host), hardlink("leak", "x/secret")} }, "cat /leak; true")},
		{name: "layer/mode of a hard link to a symlink", after: "CVE-2021-32760", outcome: "no mode of the host changes",
			run: one(func(b *bed) []entry {
				h := hardlink("h", "s")
				h.Mode, h.Uid = 0o6777, 12345
				return []entry{symlink("s", b.host+"/secret"), h, file("h", "changed")}
			}, look)},
		{name: "layer/whiteout through a symlink", after: "CVE-2021-29136", outcome: "nothing of the host is removed",
			run: unpack(func(b *bed) [][]entry {
				return [][]entry{{symlink("x", b.host)}, {file("x/.wh.secret", "")}, {file("x/.wh..wh..opq", "")}}
			}, look)},
		{name: "layer/whiteout of dot and dotdot", after: "CVE-2021-29136", outcome: "nothing outside is removed",
			run: one(func(b *bed) []entry {
				return []entry{file(".wh..", ""), file(".wh...", ""), file(".wh.", ""), file("etc/.wh...", ""), file("etc/.wh.../x", "")}
			}, "ls /")},
		{name: "layer/the root is a symlink", after: "CVE-2021-29136", outcome: "the root stays a directory",
			run: one(func(b *bed) []entry {
				return []entry{symlink("./", b.host), file("pwned", "x"), file("./secret", "changed")}
			}, look)},
		{name: "layer/symlink loop", after: "CVE-2018-15664", outcome: "no hang",
			run: one(func(b *bed) []entry { return []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")} }, look)},
		{name: "layer/devices", after: "CVE-2024-23653", outcome: "a step can't open devices that its image brings",
			run: func(b *bed) {
				var st [2]int64
				fi, err := os.Stat("/dev/vda")
				if err == nil {
					n := deviceOf(fi)
					st = [2]int64{n >> 8, n & 0xff}
				} else {
					st = [2]int64{8, 0}
				}
				ref := b.image(b.archive(special("disk", tar.TypeBlock, st[0], st[1]), special("mem", tar.TypeChar, 1, 1), special("kmsg", tar.TypeChar, 1, 11)))
				r := b.contained("FROM " + ref + "\nRUN for d in disk mem kmsg; do head -c 1 /$d > /dev/null && echo open''ed $d; done; true\n")
				b.hasNot(r, "opened")
			}},
		{name: "layer/set-user-ID programs in the store", after: "CVE-2021-41103 CVE-2021-41091 CVE-2024-25621", outcome: "other users can't reach them",
			run: func(b *bed) {
				su := file("su", "#!/bin/sh\n")
				su.Mode = 0o4755
				b.build("FROM " + b.image(b.archive(su)) + "\nRUN true\n")
				fi, err := os.Stat(b.s.Root)
				b.must(err)
				if fi.Mode().Perm()&0o077 != 0 {
					b.Errorf("the store has mode %v", fi.Mode())
				}
			}},
		{name: "layer/attributes of overlay file systems and of strake", after: "CVE-2023-0386 CVE-2021-3493", outcome: "they do not come through",
			run: func(b *bed) {
				d := dir("d")
				d.PAXRecords = map[string]string{
					"SCHILY.xattr.trusted.overlay.redirect": "/" + up + b.host, "SCHILY.xattr.user.overlay.redirect": "/etc",
					"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y",
				}
				f := file("d/f", "content")
				f.PAXRecords = map[string]string{
					"SCHILY.xattr.trusted.overlay.metacopy": "", "SCHILY.xattr.user.strake.owner": "12:34", "SCHILY.xattr.user.overlay.whiteout": "y",
				}
				low := b.archive(dir("d"), file("d/below", "still-there"))
				r := b.contained("FROM " + b.image(low, b.archive(d, f)) + "\nRUN cat /d/below /d/f; ls -ln /d; ls /d/passwd\n")
				if r.code == 0 {
					b.Errorf("redirected:\n%s", r.stderr)
				}
				b.hasNot(r, "12       34")
			}},
		{name: "layer/a path of ten thousand parts", outcome: "refused, or made; bounded", run: one(func(b *bed) []entry {
			return []entry{file(strings.Repeat("d/", 10000)+"f", "x")}
		}, "true")},
		{name: "layer/owners beyond 32 bits", after: "CVE-2024-40635", outcome: "refused, not wrapped round to root", run: func(b *bed) {
			f := file("f", "x")
			f.Uid, f.Gid = 1<<32, 1<<33
			b.buildRefused("", "FROM "+b.image(b.archive(f))+"\nRUN ls -ln /f\n")
		}},
		{name: "layer/a gzip bomb", after: "CVE-2017-14992", outcome: "streamed, in bounded memory", run: func(b *bed) {
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			b.must(tw.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: 192 << 20, Mode: 0o644}))
			_, err := io.CopyN(tw, zeros{}, 192<<20)
			b.must(err)
			b.must(tw.Close())
			b.build("FROM " + b.image(buf.Bytes()) + "\nRUN ls -l /zeros\n")
		}},
		{name: "layer/a header of a gigabyte", after: "CVE-2022-2879", outcome: "refused before it is read", run: func(b *bed) {
			b.buildRefused("", "FROM "+b.image(bigHeader(1<<30, 64<<20))+"\nRUN true\n")
		}},
		{name: "layer/a sparse map of millions", after: "CVE-2025-58183", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("", "FROM "+b.image(sparseBomb())+"\nRUN true\n")
		}},
		{name: "layer/an archive that ends early", after: "CVE-2021-21285", outcome: "refused", run: func(b *bed) {
			data := b.archive(file("f", strings.Repeat("x", 100<<10)))
			b.buildRefused("", "FROM "+b.image(data[:20<<10])+"\nRUN true\n")
		}},
		{name: "layer/another diff ID than the configuration's", after: "CVE-2014-8178 CVE-2014-8179", outcome: "refused", run: func(b *bed) {
			ref := b.imageOf(func(c *v1.ConfigFile) {
				c.RootFS.DiffIDs[len(c.RootFS.DiffIDs)-1] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("5", 64)}
			}, b.archive(file("f", "x")))
			b.buildRefused("digest|diff", "FROM "+ref+"\nRUN true\n")
		}},
		{name: "layer/zstd with a window of gigabytes", outcome: "refused, in bounded memory", run: func(b *bed) {
			// Magic, a frame header that asks for a window of 2 GiB (exponent 21 + 10), a raw block.
			frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}
			l := rawLayer{frame, digest.FromBytes(nil), types.OCILayerZStd}
			img, err := mutate.AppendLayers(b.scratch(), l)
			b.must(err)
			b.buildRefused("", "FROM "+b.push(img)+" AS x\nFROM "+b.base+"\nRUN --mount=from=x,target=/x ls /x\n")
		}},
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// header is a raw tar header.
func header(name string, typ byte, size int64) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	for i := 148; i < 156; i++ {
		h[i] = ' '
	}
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// bigHeader is an archive with an extended header that says it has size bytes,
// of which there are some.
func bigHeader(size, there int64) []byte {
	var buf bytes.Buffer
	buf.Write(header("PaxHeaders/f", 'x', size))
	fmt.Fprintf(&buf, "%d SCHILY.xattr.user.a=", size)
	buf.Write(bytes.Repeat([]byte{'a'}, int(there)))
	return buf.Bytes()
}

// sparseBomb is a file in PAX's sparse format 1.0 with a map of 10 million
// entries.
func sparseBomb() []byte {
	var records bytes.Buffer
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "f"}, {"GNU.sparse.realsize", "9000000000"}} {
		line := fmt.Sprintf(" %s=%s\n", kv[0], kv[1])
		n := len(line) + 2
		fmt.Fprintf(&records, "%d%s", n, line)
	}
	m := []byte("10000000\n" + strings.Repeat("0\n", 20_000_000))
	var buf bytes.Buffer
	buf.Write(header("PaxHeaders/f", 'x', int64(records.Len())))
	buf.Write(records.Bytes())
	buf.Write(make([]byte, 512-records.Len()%512))
	buf.Write(header("GNUSparseFile.0/f", '0', int64(len(m))))
	buf.Write(m)
	buf.Write(make([]byte, 1024+512-len(m)%512))
	return buf.Bytes()
}

// gzipped compresses.
func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(data)
	_ = w.Close()
	return buf.Bytes()
}

// exists reports whether there is something.
func exists(parts ...string) bool {
	_, err := os.Lstat(filepath.Join(parts...))
	return err == nil
}
