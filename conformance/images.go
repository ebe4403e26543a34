package main

import (
	"archive/tar"
	"bytes"
	"embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Stand-ins for the images that the tests build on: busybox in the shape of
// Alpine or Debian, as far as the tests look.

// A flavour is one kind of stand-in.
type flavour struct {
	name    string
	command []string
	links   bool     // applets are symlinks at their usual places, not hard links in /bin
	scripts []string // of rootfs/, and where they go
	tools   []string // names of rootfs/tool in /usr/local/bin
	files   map[string]string
	tags    []string
}

var flavours = []flavour{
	{
		name: "busybox", command: []string{"sh"},
		scripts: []string{"bin/adduser", "bin/addgroup"},
		files:   map[string]string{"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"},
		tags: []string{
			"library/busybox:latest", "library/busybox:stable", "library/busybox:stable-musl", "library/busybox:musl", "library/busybox:1.36",
			"moby/buildkit:buildx-stable-1", "docker/dockerfile-upstream:1.18.0", "tonistiigi/hellofs:latest", "busybox:latest",
		},
	},
	{
		name: "alpine", command: []string{"/bin/sh"}, links: true,
		scripts: []string{"usr/sbin/adduser", "usr/sbin/addgroup"},
		tools:   []string{"npm"},
		files:   map[string]string{"etc/alpine-release": "3.18.0\n", "etc/os-release": "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.0\n"},
		tags:    []string{"library/alpine:latest", "library/alpine:3.18", "library/alpine:3.16", "library/node:22-alpine", "alpine:latest"},
	},
	{
		name: "debian", command: []string{"bash"}, links: true,
		scripts: []string{"usr/sbin/adduser", "usr/sbin/addgroup", "usr/sbin/useradd", "usr/sbin/groupadd", "bin/bash"},
		tools:   []string{"pip", "go", "cargo"},
		files:   map[string]string{"etc/debian_version": "11.6\n", "etc/os-release": "NAME=\"Debian stand-in\"\nID=debian\n"},
		tags: []string{
			"amd64/debian:bullseye-20230109-slim", "library/debian:latest", "library/debian:bookworm-slim", "library/debian:10.13",
			"library/ubuntu:latest", "library/ubuntu:18.04", "library/centos:7", "library/centos:latest", "library/fedora:latest",
			// As other registries call them.
			"debian:latest", "docker/library/centos:7", "centos:7", "fedora-minimal:latest", "fedora-minimal:44", "fedora-minimal:44-x86_64", "golang:1.25",
			"library/python:3.13-slim", "library/golang:1.25", "library/golang:latest", "library/rust:1",
		},
	},
}

//go:embed rootfs
var rootfs embed.FS

var made = time.Date(2023, 11, 14, 22, 13, 20, 0, time.UTC)

const users = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const groups = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
lp:x:7:
mail:x:8:
wheel:x:10:root
www-data:x:33:
operator:x:37:
users:x:100:
nogroup:x:65533:
nobody:x:65534:
`

// pushImages puts all stand-ins into a registry.
func pushImages(registry string) error {
	for _, f := range flavours {
		img, err := f.image()
		if err != nil {
			return fmt.Errorf("stand-in for %s: %w", f.name, err)
		}
		for _, t := range f.tags {
			ref, err := name.ParseReference(registry+"/"+t, name.Insecure)
			if err != nil {
				return err
			}
			if err := remote.Write(ref, img); err != nil {
				return fmt.Errorf("push %s: %w", t, err)
			}
		}
	}
	return nil
}

func (f flavour) image() (v1.Image, error) {
	data, err := f.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), mutate.Addendum{
		Layer: layer, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
		History: v1.History{Created: v1.Time{Time: made}, CreatedBy: "stand-in for " + f.name},
	})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", runtime.GOARCH, v1.Time{Time: made}
	config.Config = v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: f.command}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return mutate.ConfigMediaType(img, "application/vnd.oci.image.config.v1+json"), nil
}

func (f flavour) layer() ([]byte, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, content string) {
		if err == nil {
			h.ModTime, h.Size = made, int64(len(content))
			if err = tw.WriteHeader(&h); err == nil {
				_, err = io.WriteString(tw, content)
			}
		}
	}
	file := func(name string, mode int64, content string) {
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, content)
	}
	dirs := "bin dev etc home lib proc root sys tmp usr usr/bin usr/sbin var var/spool var/spool/mail"
	if f.links {
		dirs += " sbin etc/apk etc/profile.d opt mnt srv media run usr/local usr/local/bin var/lib var/log var/cache var/tmp"
	}
	for d := range strings.FieldsSeq(dirs) {
		mode := map[string]int64{"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}[d]
		if mode == 0 {
			mode = 0o755
		}
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}, "")
	}
	file("etc/passwd", 0o644, users)
	file("etc/group", 0o644, groups)
	file("etc/shadow", 0o640, "root:*::0:::::\nnobody:*::0:::::\n")
	file("etc/hosts", 0o644, "127.0.0.1\tlocalhost\n")
	for _, name := range []string{"etc/nsswitch.conf", "etc/alpine-release", "etc/debian_version", "etc/os-release"} {
		if content, ok := f.files[name]; ok {
			file(name, 0o644, content)
		}
	}
	file("bin/busybox", 0o755, string(busybox))
	taken := map[string]bool{"bin/busybox": true, "linuxrc": true}
	for _, s := range f.scripts {
		content, err := rootfs.ReadFile("rootfs/" + path.Base(s))
		if err != nil {
			return nil, err
		}
		file(s, 0o755, string(content))
		taken[s] = true
	}
	tool, terr := rootfs.ReadFile("rootfs/tool")
	if terr != nil {
		return nil, terr
	}
	for _, t := range f.tools {
		file("usr/local/bin/"+t, 0o755, string(tool))
	}
	list := "--list"
	if f.links {
		list = "--list-full"
	}
	applets, lerr := exec.Command(program, list).Output()
	if lerr != nil {
		return nil, lerr
	}
	for p := range strings.FieldsSeq(string(applets)) {
		h := tar.Header{Name: p, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox", Mode: 0o777}
		if !f.links {
			h = tar.Header{Name: "bin/" + p, Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755}
		}
		if !taken[h.Name] {
			add(h, "")
		}
		taken[h.Name] = true
	}
	if !f.links {
		add(tar.Header{Name: "usr/bin/env", Typeflag: tar.TypeSymlink, Linkname: "../../bin/env", Mode: 0o777}, "")
	}
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), tw.Close()
}
