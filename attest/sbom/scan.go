package sbom

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"path"
	"strings"

	"github.com/package-url/packageurl-go"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

// The bounds of what is read of a file, and of what is found.
const (
	maxDatabase = 128 << 20
	maxManifest = 1 << 20
	maxBinary   = 256 << 20 // of one that must be held in memory
	maxPackages = 1_000_000
	maxSkipped  = 20
)

// found is what a scan finds.
type found struct {
	packages []pkg
	skipped  []string
	distro   distro
}

// distro is what os-release tells.
type distro struct{ id, version string }

// String is the distribution as a qualifier of package URLs: "debian-12".
func (d distro) String() string {
	if d.id == "" || d.version == "" {
		return d.id
	}
	return d.id + "-" + d.version
}

func (f *found) skip(format string, args ...any) {
	if len(f.skipped) < maxSkipped {
		f.skipped = append(f.skipped, fmt.Sprintf(format, args...))
	}
}

func (f *found) add(p pkg) {
	if p.name != "" && len(f.packages) < maxPackages {
		f.packages = append(f.packages, p)
	}
}

// scan looks at all files.
func (f *found) scan(ctx context.Context, v *snapshot.View) error {
	f.readDistro(ctx, v)
	var walk func(dir string) error
	walk = func(dir string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entries, err := v.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			switch e.Type {
			case layers.Dir:
				err = walk(e.Path)
			case layers.Regular:
				err = f.look(ctx, v, e)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return walk(".")
}

// reader reads packages out of one kind of file.
type reader func(f *found, name string, r io.Reader) error

// readerOf is what reads a file; nil if the name tells nothing.
func readerOf(name string) (reader, int64) {
	base := path.Base(name)
	switch {
	case name == "var/lib/dpkg/status" || strings.HasPrefix(name, "var/lib/dpkg/status.d/") && !strings.HasSuffix(name, ".md5sums"):
		return (*found).dpkg, maxDatabase
	case name == "lib/apk/db/installed" || name == "usr/lib/apk/db/installed":
		return (*found).apk, maxDatabase
	case base == "METADATA" && strings.HasSuffix(path.Dir(name), ".dist-info"),
		base == "PKG-INFO" && strings.HasSuffix(path.Dir(name), ".egg-info"):
		return (*found).python, maxManifest
	case base == "package.json" && isModule(path.Dir(name)):
		return (*found).npm, maxManifest
	}
	return nil, 0
}

// isModule reports whether a directory is that of a package in node_modules.
func isModule(dir string) bool {
	up := path.Dir(dir)
	if strings.HasPrefix(path.Base(up), "@") {
		up = path.Dir(up)
	}
	return path.Base(up) == "node_modules"
}

// rpmDatabases are files that only a library of several megabytes can read.
var rpmDatabases = map[string]bool{
	"var/lib/rpm/rpmdb.sqlite": true, "var/lib/rpm/Packages": true, "var/lib/rpm/Packages.db": true,
	"usr/lib/sysimage/rpm/rpmdb.sqlite": true, "usr/lib/sysimage/rpm/Packages.db": true,
}

func (f *found) look(ctx context.Context, v *snapshot.View, e layers.Entry) error {
	if rpmDatabases[e.Path] {
		f.skip("the RPM database /%s (use a generator image)", e.Path)
		return nil
	}
	read, limit := readerOf(e.Path)
	if read == nil {
		if e.Mode&0o111 == 0 || e.Size < 1024 {
			return nil
		}
		return f.binary(ctx, v, e)
	}
	if e.Size > limit {
		f.skip("/%s, which is larger than %d bytes", e.Path, limit)
		return nil
	}
	r, err := v.Open(ctx, e.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := read(f, e.Path, bufio.NewReader(io.LimitReader(r, limit))); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f.skip("/%s: %v", e.Path, err)
	}
	return nil
}

// readDistro reads os-release, which is often a link.
func (f *found) readDistro(ctx context.Context, v *snapshot.View) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		p, e, err := file.Resolve(v, name, true)
		if err != nil || e.Type != layers.Regular || e.Size > maxManifest {
			continue
		}
		r, err := v.Open(ctx, p)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(r); s.Scan(); {
			k, val, _ := strings.Cut(s.Text(), "=")
			val = strings.Trim(val, `"'`)
			switch k {
			case "ID":
				f.distro.id = val
			case "VERSION_ID":
				f.distro.version = val
			}
		}
		r.Close()
		if f.distro.id != "" {
			return
		}
	}
}

// dpkg reads paragraphs of dpkg's status file, which have the form of mail
// headers.
func (f *found) dpkg(name string, r io.Reader) error {
	t := textproto.NewReader(bufio.NewReaderSize(r, 64<<10))
	for {
		h, err := t.ReadMIMEHeader()
		// A package of status.d has no state: it is there.
		if state := h.Get("Status"); h.Get("Package") != "" && (state == "" || strings.HasSuffix(state, " installed")) {
			source, _, _ := strings.Cut(h.Get("Source"), " ")
			f.add(pkg{
				kind: packageurl.TypeDebian, namespace: f.namespace("debian"), name: h.Get("Package"), version: h.Get("Version"),
				arch: h.Get("Architecture"), distro: f.distro.String(), source: source, supplier: h.Get("Maintainer"), from: name,
			})
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (f *found) namespace(other string) string {
	if f.distro.id != "" {
		return f.distro.id
	}
	return other
}

// apk reads Alpine's database: lines of one letter, a colon and a value; an empty
// line ends a package.
func (f *found) apk(name string, r io.Reader) error {
	p := pkg{}
	end := func() {
		p.kind, p.namespace, p.distro, p.from = packageurl.TypeApk, f.namespace("alpine"), f.distro.String(), name
		f.add(p)
		p = pkg{}
	}
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxManifest)
	for s.Scan() {
		line := s.Text()
		if line == "" {
			end()
			continue
		}
		k, val, ok := strings.Cut(line, ":")
		if !ok || len(k) != 1 {
			continue
		}
		switch k {
		case "P":
			p.name = val
		case "V":
			p.version = val
		case "A":
			p.arch = val
		case "L":
			p.license = spdxLicense(val)
		case "o":
			if val != p.name {
				p.source = val
			}
		}
	}
	end()
	return s.Err()
}

// spdxLicense is a licence expression if it looks like one; others are not what
// the field may hold.
func spdxLicense(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" .-+()", r)
	}) {
		return ""
	}
	words := strings.Fields(strings.NewReplacer("(", " ", ")", " ").Replace(s))
	for i, w := range words {
		operator := w == "AND" || w == "OR" || w == "WITH"
		if operator != (i%2 == 1) {
			return ""
		}
	}
	return s
}

// python reads the metadata of an installed distribution.
func (f *found) python(name string, r io.Reader) error {
	h, err := textproto.NewReader(bufio.NewReader(r)).ReadMIMEHeader()
	if err != nil && len(h) == 0 {
		return err
	}
	n := strings.ToLower(strings.NewReplacer("_", "-", ".", "-").Replace(h.Get("Name")))
	f.add(pkg{kind: packageurl.TypePyPi, name: n, version: h.Get("Version"), license: spdxLicense(h.Get("License-Expression")), from: name})
	return nil
}

// npm reads the manifest of an installed package.
func (f *found) npm(name string, r io.Reader) error {
	var m struct {
		Name, Version string
		License       json.RawMessage
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return err
	}
	if m.Version == "" {
		return nil // a part of a package
	}
	p := pkg{kind: packageurl.TypeNPM, name: m.Name, version: m.Version, from: name}
	if scope, rest, ok := strings.Cut(m.Name, "/"); ok && strings.HasPrefix(scope, "@") {
		p.namespace, p.name = scope, rest
	}
	var license string
	if json.Unmarshal(m.License, &license) == nil {
		p.license = spdxLicense(license)
	}
	f.add(p)
	return nil
}

// binary looks for what Go's linker wrote into a program.
func (f *found) binary(ctx context.Context, v *snapshot.View, e layers.Entry) error {
	r, err := v.Open(ctx, e.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "\x7fELF" {
		return ctx.Err()
	}
	at, ok := r.(io.ReaderAt)
	if !ok {
		if e.Size > maxBinary {
			f.skip("/%s, which is larger than %d bytes", e.Path, maxBinary)
			return nil
		}
		rest, err := io.ReadAll(io.LimitReader(r, maxBinary))
		if err != nil {
			return err
		}
		at = bytes.NewReader(append(magic, rest...))
	}
	info, err := buildinfo.Read(at)
	if err != nil {
		return ctx.Err() // no program of Go's
	}
	f.module(info.Main.Path, info.Main.Version, e.Path)
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		f.module(d.Path, d.Version, e.Path)
	}
	if version, ok := strings.CutPrefix(info.GoVersion, "go"); ok {
		version, _, _ = strings.Cut(version, " ")
		f.add(pkg{kind: packageurl.TypeGolang, name: "stdlib", version: version, license: "BSD-3-Clause", from: e.Path})
	}
	return nil
}

func (f *found) module(mod, version, from string) {
	if mod == "" || strings.HasPrefix(mod, "./") || strings.HasPrefix(mod, "../") || strings.HasPrefix(mod, "/") {
		return
	}
	if version == "(devel)" {
		version = ""
	}
	p := pkg{kind: packageurl.TypeGolang, name: path.Base(mod), version: version, from: from}
	if dir := path.Dir(mod); dir != "." {
		p.namespace = dir
	}
	f.add(p)
}
