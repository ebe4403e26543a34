package gc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

func TestCheckOfASoundStore(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	s := testStore(t, ex.dir)
	for _, readData := range []bool{false, true} {
		if problems, err := s.Check(t.Context(), readData); err != nil || len(problems) > 0 {
			t.Errorf("Check(%v): %v, %v", readData, problems, err)
		}
	}
	if mended, err := s.Repair(t.Context()); err != nil || len(mended) > 0 {
		t.Errorf("Repair: %v, %v", mended, err)
	}
	if got := s.contents(t, ex.names); !slices.Equal(got, everything) {
		t.Errorf("left: %q", got)
	}
	empty := testStore(t, t.TempDir())
	if problems, err := empty.Check(t.Context(), true); err != nil || len(problems) > 0 {
		t.Errorf("an empty store: %v, %v", problems, err)
	}
}

// Damage is found, and only it and what can't be used without it is removed.
func TestCheckAndRepair(t *testing.T) {
	t.Parallel()
	layer := func(ex example, name string, elem ...string) string {
		return filepath.Join(append([]string{ex.dir, "layers", nameOf(ex, name)}, elem...)...)
	}
	blob := func(ex example, name string) string {
		return filepath.Join(ex.dir, "blobs", "sha256", nameOf(ex, name))
	}
	imageFile := func(ex example, dir string) string {
		files, _ := filepath.Glob(filepath.Join(ex.dir, "images", dir, "*.json"))
		return files[0]
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, ex example)
		// What Check says without reading data, and with, in part.
		quick, full []string
		lost        string // in the store's contents
	}{
		{
			"layer.json is gone",
			func(t *testing.T, ex example) { remove(t, layer(ex, "two", "layer.json")) },
			[]string{"no layer.json"}, []string{"no layer.json", `result of "RUN two"`}, "two",
		},
		{
			"layer.json is nonsense",
			func(t *testing.T, ex example) { write(t, "{", layer(ex, "alone", "layer.json")) },
			[]string{"no layer.json"}, []string{"no layer.json"}, "alone",
		},
		{
			"a layer has no directory",
			func(t *testing.T, ex example) { removeAll(t, layer(ex, "alone", "fs")) },
			[]string{"no layer.json"}, []string{"no layer.json"}, "alone",
		},
		{
			"an image's layer is gone",
			func(t *testing.T, ex example) { removeAll(t, layer(ex, "base")) },
			[]string{"of image", "of image"}, []string{"of image", "of image", `"RUN one"`, `"RUN two"`, `"RUN other`}, "base",
		},
		{
			"a file of a packed layer has other contents",
			func(t *testing.T, ex example) { flip(t, layer(ex, "other", "fs", "other")) },
			nil, []string{"other contents than when it was packed"}, "other",
		},
		{
			"a file of a packed layer is gone",
			func(t *testing.T, ex example) { remove(t, layer(ex, "other", "fs", "other")) },
			nil, []string{"other contents than when it was packed"}, "other",
		},
		{
			"a bit of a blob is flipped",
			func(t *testing.T, ex example) { flip(t, blob(ex, "garbage")) },
			nil, []string{"other content than its name says"}, "garbage",
		},
		{
			"a packed layer is cut short",
			func(t *testing.T, ex example) { truncate(t, blob(ex, "other.gz"), 10) },
			[]string{"has 10 bytes instead of"}, []string{"has 10 bytes instead of"}, "other.gz",
		},
		{
			"a configuration is damaged",
			func(t *testing.T, ex example) { flip(t, blob(ex, "config")) },
			nil, []string{"other content"}, "config",
		},
		{
			"a configuration is gone",
			func(t *testing.T, ex example) { remove(t, blob(ex, "config")) },
			[]string{"configuration of image", "configuration of image"}, []string{"configuration of image", "configuration of image"}, "config",
		},
		{
			"the file of a name is torn",
			func(t *testing.T, ex example) { truncate(t, imageFile(ex, "names"), 20) },
			[]string{"can't be read"}, []string{"can't be read"}, "",
		},
		{
			"the file of an image has another's name",
			func(t *testing.T, ex example) {
				f := imageFile(ex, "ids")
				rename(t, f, filepath.Join(filepath.Dir(f), digest.FromString("x").Encoded()+".json"))
			},
			[]string{"not the file of an image"}, []string{"not the file of an image"}, "",
		},
		{
			"strangers",
			func(t *testing.T, ex example) {
				write(t, "", filepath.Join(ex.dir, "layers", "README"))
				write(t, "", filepath.Join(ex.dir, "cachemounts", "lost+found", "x"))
			},
			[]string{"cachemounts/lost+found: is no", "layers/README: is no"}, []string{"cachemounts/lost+found: is no", "layers/README: is no"}, "",
		},
		{
			"a cache mount without its id",
			func(t *testing.T, ex example) {
				write(t, "?", filepath.Join(ex.dir, "cachemounts", nameOf(ex, "mount"), "meta.json"))
			},
			[]string{"meta.json"}, []string{"meta.json"}, "mount",
		},
		{
			"left by a killed process",
			func(t *testing.T, ex example) {
				for _, f := range []string{"images/names/.tmp-1", "cachemounts/.new-1/fs/x", "cachemounts/.new-2/fs/x"} {
					write(t, "", filepath.Join(ex.dir, f))
				}
				for _, f := range []string{"images/names/.tmp-1", "cachemounts/.new-1"} { // the others are being written
					old := time.Now().Add(-2 * leftoverAge)
					if err := os.Chtimes(filepath.Join(ex.dir, f), old, old); err != nil {
						t.Fatal(err)
					}
				}
			},
			[]string{"cachemounts/.new-1: was left", "images/names/.tmp-1: was left"}, []string{"cachemounts/.new-1: was left", "images/names/.tmp-1: was left"}, "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ex := newExample(t)
			c.damage(t, ex)
			s := testStore(t, ex.dir)
			for readData, want := range map[bool][]string{false: c.quick, true: c.full} {
				problems, err := s.Check(t.Context(), readData)
				if err != nil {
					t.Fatal(err)
				}
				var all []string
				for _, p := range problems {
					all = append(all, p.String())
				}
				text := strings.Join(all, "\n")
				if len(problems) != len(want) {
					t.Errorf("Check(%v) finds %d problems, want %d:\n%s", readData, len(problems), len(want), text)
				}
				for _, w := range want {
					if !strings.Contains(text, w) {
						t.Errorf("Check(%v) finds nothing with %q:\n%s", readData, w, text)
					}
				}
			}
			mended, err := s.Repair(t.Context())
			if err != nil || len(mended) < len(c.full) {
				t.Errorf("Repair has mended %v, %v", mended, err)
			}
			if problems, err := s.Check(t.Context(), true); err != nil || len(problems) > 0 {
				t.Errorf("after Repair: %v, %v", problems, err)
			}
			want := slices.DeleteFunc(slices.Clone(everything), func(n string) bool { return n == c.lost })
			got := slices.DeleteFunc(s.contents(t, ex.names), func(n string) bool { return n == ".new-2" })
			if !slices.Equal(got, want) {
				t.Errorf("left: %q, want %q", got, want)
			}
		})
	}
}

func TestRepairLeavesMountsInUse(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	remove(t, filepath.Join(ex.dir, "cachemounts", nameOf(ex, "mount"), "meta.json"))
	process := testStore(t, ex.dir)
	unlock, err := process.Root.Lock(t.Context(), "cachemount-"+nameOf(ex, "mount"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	s := testStore(t, ex.dir)
	if mended, err := s.Repair(t.Context()); err != nil || len(mended) > 0 {
		t.Errorf("mended %v, %v", mended, err)
	}
	if !slices.Contains(s.contents(t, ex.names), "mount") {
		t.Error("a cache mount that is in use was removed")
	}
}

// On a full disk, pruning is what makes space again.
func TestPruneOnAFullDisk(t *testing.T) {
	t.Parallel()
	const child = "STRAKE_GC_TEST"
	if os.Getenv(child) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestPruneOnAFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		}
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Skipf("SKIPPED: no user namespaces here: %v", err)
		}
		if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,nr_inodes=200"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	var k [2]string
	fill(t, dir, func(s *Store) {
		kept, gone := s.layer(t, "kept", 100_000), s.layer(t, "gone", 100_000)
		k[0] = string(s.record(t, "RUN kept", layers.Tree{kept}))
		k[1] = string(s.record(t, "RUN gone", layers.Tree{gone}))
		s.image(t, "app", layers.Tree{kept})
	})
	s := testStore(t, dir)
	f, err := os.Create(filepath.Join(dir, "lost+found"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, err = f.Write(make([]byte, 4096)); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	if !noSpace(err) {
		t.Fatalf("the disk is not full: %v", err)
	}
	// And no file can be made.
	for n := 0; ; n++ {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("lost", n)), 0o700); err != nil {
			break
		}
	}
	if tmp, err := s.Root.TempDir("x"); !noSpace(err) {
		t.Fatalf("a directory can be made: %s, %v", tmp, err)
	}
	removed, err := s.Prune(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	var freed int64
	for _, e := range removed {
		freed += e.Size
	}
	if freed < 100_000 {
		t.Errorf("freed %d bytes: %v", freed, removed)
	}
	if all, err := s.Cache.All(); err != nil || len(all) != 1 || string(all[0].Key) != k[0] {
		t.Errorf("records are left: %v, %v", all, err)
	}
	for n := range 5 {
		remove(t, filepath.Join(dir, fmt.Sprint("lost", n)))
	}
	s.layer(t, "new", 50_000)
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func removeAll(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// flip changes a bit of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
