package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

func applyTo(t testing.TB, dir string, data []byte, o ApplyOptions) {
	t.Helper()
	if err := Apply(context.Background(), dir, bytes.NewReader(data), o); err != nil {
		t.Fatal(err)
	}
}

func tarOfEntries(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteTar(context.Background(), &b, seq(entries...), nil, TarOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestApply(t *testing.T) {
	t.Parallel()
	needRoot(t)
	type headers = []tar.Header
	for _, c := range []struct {
		name string
		in   headers
		want string
	}{
		{"nothing", nil, ``},
		{"missing parents", headers{file("a/b/c", "1")}, `
			dir a 0755
			dir a/b 0755
			file a/b/c 1 0644`},
		{"absolute and untidy names", headers{file("/etc//./passwd", "1"), dir("./x/../y")}, `
			dir etc 0755
			file etc/passwd 1 0644
			dir y 0755`},
		{"the last of equal names counts", headers{file("a", "1"), file("a", "22"), link("b", "x"), link("b", "y"), dir("c"), {Name: "c/", Mode: 0o700}}, `
			file a 2 0644
			link b -> y
			dir c 0700`},
		{"a directory loses its content to a file", headers{dir("a"), file("a/b", "1"), file("a/c/d", "1"), file("a", "22")}, `
			file a 2 0644`},
		{"a directory instead of a file", headers{file("a", "1"), file("b", "1"), dir("a"), file("a/x", "1")}, `
			dir a 0755
			file a/x 1 0644
			file b 1 0644`},
		{"directories made again", headers{{Name: "a/", Mode: 0o700}, {Name: "a/b/", Mode: 0o700}, file("a", "1"), dir("a"), file("a/b/c", "1")}, `
			dir a 0755
			dir a/b 0755
			file a/b/c 1 0644`},
		{"linked parents", headers{dir("usr"), dir("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr"), link("up", "usr/lib/../../../../usr"),
			file("lib/a", "1"), file("abs/b", "1"), file("up/c", "1"), {Name: "lib/d/", Mode: 0o700}}, `
			link abs -> /usr
			link lib -> usr/lib
			link up -> usr/lib/../../../../usr
			dir usr 0755
			file usr/b 1 0644
			file usr/c 1 0644
			dir usr/lib 0755
			file usr/lib/a 1 0644
			dir usr/lib/d 0700`},
		{"dangling parents", headers{link("run", "/var/run"), file("run/pid", "1")}, `
			link run -> /var/run
			dir var 0755
			dir var/run 0755
			file var/run/pid 1 0644`},
		{"a link is replaced, not followed", headers{dir("d"), link("a", "d"), link("b", "d"), link("c", "/etc/passwd"), file("a", "1"), dir("b"), file("b/x", "1"), file("c", "1")}, `
			file a 1 0644
			dir b 0755
			file b/x 1 0644
			file c 1 0644
			dir d 0755`},
		{"paths through a link that was replaced", headers{dir("d"), dir("e"), link("a", "d"), file("a/1", ""), link("a", "e"), file("a/2", ""), dir("a"), file("a/3", "")}, `
			dir a 0755
			file a/3 0 0644
			dir d 0755
			file d/1 0 0644
			dir e 0755
			file e/2 0 0644`},
		{"hard links", headers{file("a", "1"), hard("b", "a"), hard("/c/d", "./a"), link("l", "a"), hard("m", "l"), hard("a", "b"), link("p", "c"), hard("q", "p/d")}, `
			file a 1 0644
			hard b = a
			dir c 0755
			hard c/d = a
			link l -> a
			hard m = l
			link p -> c
			hard q = a`},
		{"whiteouts", headers{dir("a"), file("a/.wh.b", ""), file(".wh.c", ""), file("d/.wh..wh..opq", ""), file("e/.wh.f", ""), file(".wh.g.wh.h", "")}, `
			dir a 0755
			gone a/b
			gone c
			dir d 0755 opaque
			dir e 0755
			gone e/f
			gone g.wh.h`},
		{"whiteouts are about lower layers", headers{file("a", "1"), file(".wh.a", ""), dir("b"), file("b/x", "1"), file(".wh.b", ""), file(".wh.c", ""), file("c", "1"),
			file(".wh.d", ""), dir("d"), file(".wh.e", ""), file("e/f/g", "1"), file("h/x", ""), file("h/.wh..wh..opq", ""), file("h/y", ""), link("i", "b"), file(".wh.i", "")}, `
			file a 1 0644
			dir b 0755 opaque
			file b/x 1 0644
			file c 1 0644
			dir d 0755 opaque
			dir e 0755 opaque
			dir e/f 0755
			file e/f/g 1 0644
			dir h 0755 opaque
			file h/x 0 0644
			file h/y 0 0644
			link i -> b`},
		{"whiteout of a whiteout, twice", headers{file(".wh.a", ""), file(".wh.a", "")}, `gone a`},
		{"marks of aufs", headers{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("a", "")}, `
			file a 0 0644`},
		{"opaque through a link", headers{dir("a"), link("b", "a"), file("b/.wh..wh..opq", "")}, `
			dir a 0755 opaque
			link b -> a`},
		{"an opaque root", headers{file(".wh..wh..opq", ""), file("a", "")}, `
			gone ./*
			file a 0 0644`},
		{"devices", headers{{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, {Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o660, Gid: 6},
			{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600, Uid: 7}, {Name: "w", Typeflag: tar.TypeChar}}, `
			char null 1:3 0666
			fifo p 0600 7:0
			block sda 8:0 0660 0:6
			gone w`},
		{"owners and modes", headers{{Name: "a", Uid: 1000, Gid: 3_000_000, Mode: 0o6755}, {Name: "d/", Uid: 5, Mode: 0o3777}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "x", Uid: 9, Gid: 8},
			{Name: "ro/", Mode: 0o500}, file("ro/a", "1"), {Name: "none/", Mode: 0o2000}, file("d/a", "")}, `
			file a 0 6755 1000:3000000
			dir d 3777 5:0
			file d/a 0 0644
			link l -> x 9:8
			dir none 2000
			dir ro 0500
			file ro/a 1 0644`},
		{"attributes", headers{
			{Name: "a", Uid: 1, PAXRecords: map[string]string{"TEST.body": "xyz", "SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": capNetRaw,
				"SCHILY.xattr.user.overlay.whiteout": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr." + OwnerXattr: "0:0:4755", "SCHILY.xattr.trusted.x": "1"}},
			{Name: "d/", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.d": ""}}}, `
			file a 3 0644 1:0 security.capability=` + fmt.Sprintf("%q", capNetRaw) + ` user.a="1"
			dir d 0755 user.d=""`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := layerDir(t)
			needXattrs(t, dir)
			applyTo(t, dir, stream(t, c.in...), ApplyOptions{})
			want(t, list(t, Walk(dir)), c.want)
			roundTrip(t, dir)
		})
	}
}

// roundTrip checks that a layer directory comes back from its tar stream.
func roundTrip(t testing.TB, dir string) {
	t.Helper()
	first := tarOf(t, dir, TarOptions{})
	again := layerDir(t)
	applyTo(t, again, first, ApplyOptions{})
	if got, before := list(t, Walk(again)), list(t, Walk(dir)); got != before {
		t.Errorf("unpacked again:\n%s\nwas:\n%s", got, before)
	}
	if !bytes.Equal(tarOf(t, again, TarOptions{}), first) {
		t.Error("packed again, it has other bytes")
	}
}

func TestApplyErrors(t *testing.T) {
	t.Parallel()
	needRoot(t)
	type headers = []tar.Header
	long := strings.Repeat("x/", 2048)
	for _, c := range []struct {
		name string
		in   headers
		o    ApplyOptions
		want string
	}{
		{"up", headers{file("../outside/a", "")}, ApplyOptions{}, `tar entry "../outside/a": leaves the root`},
		{"down and up", headers{file("a/../../outside/a", "")}, ApplyOptions{}, `tar entry "a/../../outside/a": leaves the root`},
		{"absolute and up", headers{file("/../outside/a", "")}, ApplyOptions{}, `tar entry "/../outside/a": leaves the root`},
		{"hard link up", headers{hard("a", "../outside/canary")}, ApplyOptions{}, `tar entry "a": hard link to "../outside/canary": leaves the root`},
		{"hard link through a link", headers{link("up", "../outside"), hard("a", "up/canary")}, ApplyOptions{}, "a: hard link to up/canary, which is not in the layer"},
		{"hard link to nothing", headers{hard("a", "b")}, ApplyOptions{}, "a: hard link to b, which is not in the layer"},
		{"hard link to a directory", headers{dir("b"), hard("a", "b")}, ApplyOptions{}, "a: hard link to b, which is a directory"},
		{"hard link to a whiteout", headers{file(".wh.b", ""), hard("a", "b")}, ApplyOptions{}, "a: hard link to b, which is not in the layer"},
		{"hard link over the directory of its target", headers{file("a/b", ""), hard("a", "a/b")}, ApplyOptions{}, "a: hard link to a/b, which is not in the layer"},
		{"whiteout of nothing", headers{file("a/.wh.", "")}, ApplyOptions{}, `tar entry "a/.wh.": a whiteout of ""`},
		{"whiteout of the directory", headers{file("a/.wh..", "")}, ApplyOptions{}, `tar entry "a/.wh..": a whiteout of "."`},
		{"whiteout of the parent", headers{file(".wh...", "")}, ApplyOptions{}, `tar entry ".wh...": a whiteout of ".."`},
		{"in a whiteout", headers{file(".wh.a/b", "")}, ApplyOptions{}, `tar entry ".wh.a/b": a whiteout (.wh.a) is used as a directory`},
		{"root is a file", headers{file(".", "")}, ApplyOptions{}, ".: the root is not a directory"},
		{"root is a link", headers{link("./", "/etc")}, ApplyOptions{}, ".: the root is not a directory"},
		{"below a file", headers{file("a", ""), file("a/b", "")}, ApplyOptions{}, "a/b: not a directory"},
		{"circle", headers{link("a", "b"), link("b", "a"), file("a/c", "")}, ApplyOptions{}, "a/c: too many levels of symbolic links"},
		{"long name", headers{file(long+"a", "")}, ApplyOptions{}, `tar entry "x/x/`},
		{"long component", headers{file(strings.Repeat("n", 256), "")}, ApplyOptions{}, strings.Repeat("n", 256) + ": file name too long"},
		{"owner", headers{{Name: "a", Uid: 1 << 32}}, ApplyOptions{}, `tar entry "a": owner 4294967296:0`},
		{"type", headers{{Name: "a", Typeflag: 'Q'}}, ApplyOptions{}, `tar entry "a": unknown type 'Q'`},
		{"entries", headers{dir("a"), dir("b"), dir("c")}, ApplyOptions{MaxEntries: 2}, "more than 2 entries"},
		{"entries implied", headers{file("a/b/c", "")}, ApplyOptions{MaxEntries: 2}, "a/b/c: more than 2 entries"},
		{"size", headers{file("a", "123"), file("b", "45")}, ApplyOptions{MaxSize: 4}, "b: more than 4 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := Apply(context.Background(), layerDir(t), bytes.NewReader(stream(t, c.in...)), c.o)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestApplyBroken(t *testing.T) {
	t.Parallel()
	needRoot(t)
	whole := stream(t, file("a", strings.Repeat("x", 200_000)), file("b", "1"))
	broken := errors.New("connection reset")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		r    io.Reader
		want error
	}{
		{"truncated content", context.Background(), bytes.NewReader(whole[:100_000]), io.ErrUnexpectedEOF},
		{"truncated header", context.Background(), bytes.NewReader(whole[:201_000-200]), io.ErrUnexpectedEOF},
		{"no tar", context.Background(), strings.NewReader(strings.Repeat("no tar", 1000)), tar.ErrHeader},
		{"read error", context.Background(), io.MultiReader(bytes.NewReader(whole[:100_000]), iotest.ErrReader(broken)), broken},
		{"error after the end", context.Background(), io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(broken)), broken},
		{"cancelled", ctx, bytes.NewReader(whole), context.Canceled},
	} {
		if err := Apply(c.ctx, layerDir(t), c.r, ApplyOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestApplyTimes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	in := []tar.Header{dir("told"), file("told/a", "1"), file("implied/a", "1"), link("l", "x")}
	for i := range in {
		in[i].ModTime = someTime
	}
	dir := apply(t, stream(t, in...), ApplyOptions{})
	for e, err := range Walk(dir) {
		must(t, err)
		want := someTime
		if e.Path == "implied" {
			want = DefaultModTime
		}
		if !e.ModTime.Equal(want) {
			t.Errorf("%s has time %v", e.Path, e.ModTime)
		}
	}
	fi, err := os.Stat(dir)
	must(t, err)
	if !fi.ModTime().Equal(DefaultModTime) || fi.Mode().Perm() != 0o755 {
		t.Errorf("the root has %v %v", fi.Mode(), fi.ModTime())
	}
	root := tar.Header{Name: "./", Mode: 0o1711, Uid: 3, ModTime: someTime}
	dir = apply(t, stream(t, root, file("a", "")), ApplyOptions{})
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	if st.Mode != unix.S_IFDIR|0o1711 || st.Uid != 3 || st.Mtim.Sec != someTime.Unix() {
		t.Errorf("the root has mode %o, owner %d, time %d", st.Mode, st.Uid, st.Mtim.Sec)
	}
}

// Holes stay holes, and files of all sizes around the limits have their content.
func TestApplyContent(t *testing.T) {
	t.Parallel()
	needRoot(t)
	var in []tar.Header
	for _, n := range []int{0, 1, 511, 512, 513, smallFile - 1, smallFile, smallFile + 1, 256<<10 + 1, 1 << 20} {
		in = append(in, file(fmt.Sprint("f", n), strings.Repeat("0123456789abcde\n", n/16+1)[:n]))
	}
	zeros := strings.Repeat("\x00", 4<<20)
	in = append(in, file("hole", zeros+"x"+zeros))
	dir := apply(t, stream(t, in...), ApplyOptions{})
	for _, h := range in[:len(in)-1] {
		b, err := os.ReadFile(filepath.Join(dir, h.Name))
		must(t, err)
		if got := fmt.Sprint("f", len(b)); got != h.Name || string(b) != strings.Repeat("0123456789abcde\n", len(b)/16+1)[:len(b)] {
			t.Errorf("%s has %d bytes or other ones", h.Name, len(b))
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "hole"))
	must(t, err)
	if string(b) != zeros+"x"+zeros {
		t.Error("a file with holes has other content")
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "hole"), &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("zeros take %d bytes", st.Blocks*512)
	}
}

// The options for namespaces, by processes that have less than root.
func TestApplyUnprivileged(t *testing.T) {
	t.Parallel()
	needRoot(t)
	in := stream(t,
		tar.Header{Name: "a", Uid: 1000, Gid: 5, Mode: 0o4755, PAXRecords: map[string]string{"TEST.body": "x", "SCHILY.xattr.security.capability": capNetRaw}},
		tar.Header{Name: "secret", Mode: 0o200, PAXRecords: map[string]string{"TEST.body": "y"}},
		tar.Header{Name: "d/", Uid: 7, Mode: 0o500},
		file("d/.wh.gone", ""),
		file("d/f", "1"),
		file("o/.wh..wh..opq", ""),
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a", Uid: 1000},
		tar.Header{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 8},
	)
	entries := `
		file a 1 4755 1000:5%s
		dir d 0500 7:0
		file d/f 1 0644
		gone d/gone
		link l -> a%s
		dir o 0755 opaque
		file secret 1 0200`
	for _, c := range []struct {
		name string
		attr *syscall.SysProcAttr
		want string
	}{
		{"plain user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, fmt.Sprintf(entries, "", " 65534:65534")},
		{"namespace of one id", &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
			Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		}, fmt.Sprintf(entries, fmt.Sprintf(" security.capability=%q", capNetRaw), "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// The test's own directory is not reachable for others.
			dir, err := os.MkdirTemp("/tmp", "strake-layers-test-")
			must(t, err)
			defer os.RemoveAll(dir)
			needXattrs(t, dir)
			layer := filepath.Join(dir, "layer")
			exe := filepath.Join(dir, "test")
			self, err := os.ReadFile("/proc/self/exe")
			must(t, err, os.Chmod(dir, 0o755), os.Mkdir(layer, 0o755), os.Chown(layer, 65534, 65534))
			// No other test may fork while the program is open for writing:
			// the child would have it open too, and exec refuse it.
			syscall.ForkLock.RLock()
			err = os.WriteFile(exe, self, 0o755)
			syscall.ForkLock.RUnlock()
			must(t, err)
			cmd := exec.Command(exe, "-test.run=^TestHelperApply$", "-test.v")
			cmd.Env = append(os.Environ(), "STRAKE_TEST_LAYER="+layer)
			cmd.Dir = "/"
			cmd.Stdin = bytes.NewReader(in)
			cmd.SysProcAttr = c.attr
			out, err := cmd.CombinedOutput()
			if err != nil {
				if errors.Is(err, unix.EPERM) {
					t.Skipf("can't start it: %v", err)
				}
				t.Fatalf("%v\n%s", err, out)
			}
			_, got, _ := strings.Cut(string(out), "LAYER\n")
			got, _, ok := strings.Cut(got, "END\n")
			if !ok {
				t.Fatalf("%s", out)
			}
			want(t, got, c.want)
		})
	}
}

// TestHelperApply is the process of TestApplyUnprivileged.
func TestHelperApply(t *testing.T) {
	dir := os.Getenv("STRAKE_TEST_LAYER")
	if dir == "" {
		t.Skip("not called as a helper")
	}
	must(t, Apply(context.Background(), dir, os.Stdin, ApplyOptions{UserXattr: true, RecordOwners: true}))
	fmt.Printf("LAYER\n%sEND\n", list(t, Walk(dir)))
	// What can't be read can't be packed.
	if n := len(tarOf(t, dir, TarOptions{})); n == 0 {
		t.Error("nothing was packed")
	}
}

// Where whiteouts can't be device nodes they are files that overlayfs knows by
// an attribute.
func TestMarkedWhiteout(t *testing.T) {
	t.Parallel()
	dir := layerDir(t)
	needXattrs(t, dir)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	a := &applier{dirs: map[string]*dirMeta{".": {}}}
	p := &handle{fd: fd, real: "."}
	must(t, a.markWhiteout(p, "gone", &Entry{ModTime: someTime}))
	want(t, list(t, Walk(dir)), "gone gone")
	st, err := p.stat("gone")
	must(t, err)
	if !isWhiteout(p, "gone", st) || !a.dirs["."].marked {
		t.Error("the whiteout is not known as one")
	}
}

// What GNU tar packs comes out as GNU tar unpacks it.
func TestGNUTarWrites(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	src := t.TempDir()
	in := func(name string) string { return filepath.Join(src, name) }
	deep := strings.Repeat("dir/", 50)
	must(t,
		os.MkdirAll(in(deep), 0o755),
		os.WriteFile(in(deep+"file"), []byte("deep"), 0o640),
		os.WriteFile(in("grün"), []byte("x"), 0o4755),
		os.Link(in("grün"), in("link")),
		os.Symlink(strings.Repeat("target/", 30), in("symlink")),
		os.Chown(in("grün"), 5_000_000, 6),
		os.WriteFile(in("sparse"), nil, 0o644),
		os.Truncate(in("sparse"), 10<<20),
		unix.Mkfifo(in("fifo"), 0o600),
	)
	f, err := os.OpenFile(in("sparse"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 5<<20)
	must(t, err, f.Close())
	for _, format := range []string{"gnu", "pax", "oldgnu"} {
		t.Run(format, func(t *testing.T) {
			out, err := exec.Command("tar", "-c", "--sparse", "--format="+format, "--sort=name", "-C", src, ".").Output()
			must(t, err)
			dir := apply(t, out, ApplyOptions{})
			if got, want := list(t, Walk(dir)), list(t, Walk(src)); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if !bytes.Equal(tarOf(t, dir, TarOptions{}), tarOf(t, src, TarOptions{})) {
				t.Error("packed again, it has other bytes")
			}
		})
	}
}

func TestReadTarBody(t *testing.T) {
	t.Parallel()
	entries, body := ReadTar(bytes.NewReader(stream(t, file("a", "first"), dir("b"), file("c", "third"), file("d", "fourth"))))
	var got []string
	for e, err := range entries {
		must(t, err)
		if e.Type != Regular || e.Path == "c" { // may be left unread
			continue
		}
		b, err := io.ReadAll(body)
		must(t, err)
		got = append(got, e.Path+"="+string(b))
	}
	if fmt.Sprint(got) != "[a=first d=fourth]" {
		t.Errorf("got %v", got)
	}
}
