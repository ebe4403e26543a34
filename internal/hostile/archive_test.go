package hostile

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func deviceOf(fi os.FileInfo) int64 { return int64(fi.Sys().(*syscall.Stat_t).Rdev) }

// archiveAttacks are archives for load and ADD.
func archiveAttacks() []attack {
	load := func(entries func(b *bed) []entry) func(b *bed) {
		return func(b *bed) { b.refused("", "load", "-i", b.saved("image.tar", entries(b)...)) }
	}
	add := func(entries func(b *bed) []entry, check func(b *bed, r result)) func(b *bed) {
		return func(b *bed) {
			c := b.context("FROM " + b.base + "\nADD a.tar /into/\nRUN ls -lR /into; cat /into/leak; true\n")
			b.must(os.WriteFile(filepath.Join(c, "a.tar"), b.archive(entries(b)...), 0o644))
			r := b.strake("build", "--progress", "plain", "-o", filepath.Join(b.dir, "out"), c)
			if check != nil {
				check(b, r)
			}
		}
	}
	return []attack{
		{name: "archive/docker load of paths outside", after: "CVE-2014-9358 CVE-2014-9356", outcome: "refused; no file outside is read",
			run: load(func(b *bed) []entry {
				return []entry{file("manifest.json", `[{"Config":"`+up+b.host[1:]+`/secret","RepoTags":["a:b"],"Layers":["`+b.host+`/secret"]}]`)}
			})},
		{name: "archive/docker load of a link to the host", after: "CVE-2014-9356", outcome: "refused; the link is not followed",
			run: load(func(b *bed) []entry {
				return []entry{symlink("c.json", b.host+"/secret"), symlink("l/layer.tar", b.host+"/secret"), file("manifest.json", `[{"Config":"c.json","Layers":["l/layer.tar"]}]`)}
			})},
		{name: "archive/load of an OCI layout with a hostile digest", after: "CVE-2024-3727", outcome: "refused",
			run: load(func(b *bed) []entry {
				return []entry{
					file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`),
					file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+up+b.host[1:]+`/secret","size":26}]}`),
				}
			})},
		{name: "archive/load of a layout whose blob is a link", after: "CVE-2021-21272", outcome: "refused; the link is not followed",
			run: load(func(b *bed) []entry {
				d := strings.Repeat("a", 64)
				return []entry{
					file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), symlink("blobs/sha256/"+d, b.host+"/secret"),
					file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+d+`","size":26}]}`),
				}
			})},
		{name: "archive/load of names with control characters", after: "CVE-2019-16884", outcome: "refused, and shown harmlessly",
			run: func(b *bed) {
				p := filepath.Join(b.dir, "image.tar")
				tag, err := name.NewTag("good:tag")
				b.must(err)
				var buf bytes.Buffer
				b.must(tarball.Write(tag, b.scratch(b.archive(file("f", "x"))), &buf))
				data := bytes.ReplaceAll(buf.Bytes(), []byte("good:tag"), []byte("\x1b[31m:\x07a"))
				b.must(os.WriteFile(p, data, 0o644))
				b.strake("load", "-i", p)
				b.ok("images")
			}},
		{name: "archive/load of a manifest bomb", after: "CVE-2023-25153", outcome: "refused, in bounded memory",
			run: func(b *bed) {
				var buf bytes.Buffer
				tw := tar.NewWriter(&buf)
				b.must(tw.WriteHeader(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Size: 200 << 20, Mode: 0o644}))
				_, err := tw.Write(bytes.Repeat([]byte("["), 200<<20))
				b.must(err)
				b.must(tw.Close())
				p := filepath.Join(b.dir, "bomb.tar")
				b.must(os.WriteFile(p, buf.Bytes(), 0o644))
				b.refused("", "load", "-i", p)
			}},
		{name: "archive/ADD with dotdot and absolute names", after: "CVE-2026-28406 CVE-2020-10696 CVE-2018-1002105", outcome: "nothing is written outside of the destination's tree",
			run: add(func(b *bed) []entry {
				return []entry{file(up+b.token, "x"), file(up[:len(up)-1]+b.host+"/pwned", "x"), file(b.host+"/secret", "changed")}
			}, nil)},
		{name: "archive/ADD of a link and a file through it", after: "CVE-2026-28406 CVE-2026-42574", outcome: "the link is not followed",
			run: add(func(b *bed) []entry {
				return []entry{symlink("x", b.host), file("x/pwned", "x"), hardlink("leak", b.host+"/secret"), hardlink("leak2", "x/secret")}
			}, nil)},
		{name: "archive/ADD to a destination that is a link", after: "CVE-2018-15664 CVE-2014-9356", outcome: "the link is followed inside the image",
			run: func(b *bed) {
				c := b.context("FROM " + b.image(b.archive(symlink("into", b.host))) + "\nADD a.tar /into/\nCOPY Dockerfile /into/\n")
				b.must(os.WriteFile(filepath.Join(c, "a.tar"), b.archive(file("pwned", "x")), 0o644))
				b.ok("build", "-t", "app", c)
			}},
		{name: "archive/ADD of devices and set-user-ID files, delivered to a directory", after: "CVE-2021-41091", outcome: "no device and no set-user-ID file appears there",
			run: add(func(b *bed) []entry {
				su := file("su", "x")
				su.Mode = 0o6755
				return []entry{su, special("mem", tar.TypeChar, 1, 1), special("pipe", tar.TypeFifo, 0, 0)}
			}, func(b *bed, r result) {
				if fi, err := os.Lstat(filepath.Join(b.dir, "out/into/su")); err == nil && fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
					b.Errorf("out/into/su has mode %v", fi.Mode())
				}
				if fi, err := os.Lstat(filepath.Join(b.dir, "out/into/mem")); err == nil && fi.Mode()&os.ModeDevice != 0 {
					b.Error("out/into/mem is a device")
				}
			})},
		{name: "archive/ADD of an xz dictionary bomb", after: "CVE-2014-9357", outcome: "refused or read in bounded memory, without another program",
			run: func(b *bed) {
				xz, err := exec.LookPath("xz")
				if err != nil {
					b.Skip("SKIPPED: needs xz (Debian: xz-utils)")
				}
				cmd := exec.Command(xz, "--format=xz", "--lzma2=dict=1536MiB", "-c")
				cmd.Stdin = bytes.NewReader(b.archive(file("f", "x")))
				data, err := cmd.Output()
				if err != nil {
					b.Skipf("SKIPPED: xz can't make it: %v", err)
				}
				c := b.context("FROM " + b.base + "\nADD a.tar.xz /\n")
				b.must(os.WriteFile(filepath.Join(c, "a.tar.xz"), data, 0o644))
				b.strake("build", "--progress", "plain", c)
			}},
		{name: "archive/ADD of a nested gzip bomb", after: "CVE-2017-14992", outcome: "one layer is undone, in bounded memory",
			run: func(b *bed) {
				c := b.context("FROM " + b.base + "\nADD a.tar.gz /\nRUN ls -l /z.gz\n")
				inner := gzipped(gzipped(make([]byte, 64<<20)))
				b.must(os.WriteFile(filepath.Join(c, "a.tar.gz"), gzipped(b.archive(file("z.gz", string(inner)))), 0o644))
				b.has(b.ok("build", "--progress", "plain", c), "z.gz")
			}},
		{name: "archive/ADD of an archive of headers only", after: "CVE-2022-2879 CVE-2025-58183", outcome: "refused, or copied as the file it is; bounded memory",
			run: func(b *bed) {
				for _, data := range [][]byte{bigHeader(1<<33, 8<<20), sparseBomb()} {
					c := b.context("FROM " + b.base + "\nADD a.tar /\n")
					b.must(os.WriteFile(filepath.Join(c, "a.tar"), data, 0o644))
					b.strake("build", "--progress", "plain", c)
				}
			}},
	}
}
