package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/strake-build/strake/internal/testbed"
)

// smallDisk mounts a small file system of its own.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	testbed.NeedRoot(t)
	mkfs := testbed.NeedTool(t, "mkfs.ext4", "e2fsprogs")
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, int64(megabytes)<<20); err != nil {
		t.Fatal(err)
	}
	// No blocks are kept for root: it is root that fills the disk.
	if out, err := exec.Command(mkfs, "-q", "-m", "0", img).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no loop devices here: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return mnt
}

// fill writes to a file until nothing more fits on its disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size >= 1; {
		_, err := f.Write(make([]byte, size))
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestPruneOnAFullDisk fills the disk that the store is on to the last block.
func TestPruneOnAFullDisk(t *testing.T) {
	disk := smallDisk(t, 64)
	s := testbed.NewStore(t)
	s.Root = filepath.Join(disk, "root")
	base := testbed.Busybox(t, testbed.NewRegistry(t))
	var file strings.Builder
	// What the cache knows of the steps is large, too: to rewrite it takes more
	// than one of them frees.
	fmt.Fprintf(&file, "FROM %s\nENV LARGE=%s\n", base, strings.Repeat("x", 60_000))
	for i := range 40 {
		fmt.Fprintf(&file, "RUN head -c 300000 /dev/urandom > /f%d\n", i)
	}
	dir := testbed.Write(t, map[string]string{"Dockerfile": file.String()})
	build := []string{"build", "--progress=quiet", "-o", "type=tar,dest=/dev/null", dir}
	s.Run(build...)
	fill(t, filepath.Join(disk, "filler"))
	if n := free(t, disk); n != 0 {
		t.Fatalf("%d bytes are still free", n)
	}
	// The last layer is the one that can go alone.
	out, _ := s.Run("du", "--verbose", "--format", "{{.ID}} {{.Description}}")
	last := regexp.MustCompile(`(?m)^(\w+) \[41/41\]`).FindStringSubmatch(out)
	if last == nil {
		t.Fatalf("the last layer is not in\n%s", out)
	}
	out, stderr, err := s.Try("prune", "--force", "--filter", "id="+last[1])
	if err != nil || stderr != "" {
		t.Fatalf("prune of one step: %v\n%s", err, stderr)
	}
	if n := free(t, disk); n < 250_000 || n > 1<<20 {
		t.Fatalf("%d bytes are free after one step has gone:\n%s", n, out)
	}
	fill(t, filepath.Join(disk, "filler2"))
	out, stderr, err = s.Try("prune", "--force")
	if err != nil {
		t.Fatalf("prune: %v\n%s", err, stderr)
	}
	if n := free(t, disk); n < 10<<20 {
		t.Errorf("%d bytes are free after\n%s%s", n, out, stderr)
	}
	for _, name := range []string{"filler", "filler2"} {
		if err := os.Remove(filepath.Join(disk, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, _ := s.Run("check"); strings.Contains(out, "damaged") {
		t.Errorf("check finds\n%s", out)
	}
	s.Run(build...)
}

// TestUsageIsThatOfTheDisk compares du with the blocks that the file system
// counts.
func TestUsageIsThatOfTheDisk(t *testing.T) {
	disk := smallDisk(t, 128)
	s := testbed.NewStore(t)
	s.Root = filepath.Join(disk, "root")
	if err := os.Mkdir(s.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	before := free(t, disk)
	base := testbed.Busybox(t, testbed.NewRegistry(t))
	dir := testbed.Write(t, map[string]string{
		"Dockerfile": fmt.Sprintf(`FROM %s AS a
RUN head -c 3000000 /dev/urandom > /big; mkdir /many; for i in $(seq 300); do echo $i > /many/$i; done
RUN --mount=type=cache,target=/c head -c 2000000 /dev/urandom > /c/x
FROM %[1]s
COPY --from=a /big /many /
COPY . /context
RUN head -c 20000000 /dev/zero > /sparse
`, base), "x": strings.Repeat("x", 100_000),
	})
	s.Run("build", "--progress=quiet", "-t", "app", dir)
	s.Run("build", "--progress=quiet", "-o", "type=oci,dest="+filepath.Join(t.TempDir(), "x.tar"), dir)
	syscall.Sync()
	used := before - free(t, disk)
	out, _ := s.Run("du", "--format", "{{.Bytes}}")
	var told int64
	for line := range strings.Lines(out) {
		n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		told += n
	}
	t.Logf("du tells of %d bytes, the file system of %d", told, used)
	if d := told - used; d > used/50 || -d > used/50 {
		t.Errorf("du tells of %d bytes, the file system of %d: more than 2 %% apart", told, used)
	}
}

// TestPruneKeepsWhatItShould tries the limits one by one.
func TestPruneKeepsWhatItShould(t *testing.T) {
	testbed.NeedRoot(t)
	s := testbed.NewStore(t)
	base := testbed.Busybox(t, testbed.NewRegistry(t))
	var file strings.Builder
	fmt.Fprintf(&file, "FROM %s\n", base)
	for i := range 10 {
		fmt.Fprintf(&file, "RUN head -c 1000000 /dev/urandom > /f%d\n", i)
	}
	dir := testbed.Write(t, map[string]string{"Dockerfile": file.String()})
	build := func() {
		t.Helper()
		s.Run("build", "--progress=quiet", "-o", "type=tar,dest=/dev/null", dir)
	}
	size := func() (n int64) {
		t.Helper()
		if err := filepath.WalkDir(s.Root, func(_ string, e fs.DirEntry, err error) error {
			if err == nil {
				fi, err := e.Info()
				if err == nil {
					n += fi.Sys().(*syscall.Stat_t).Blocks * 512
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	total := regexp.MustCompile(`(?m)^Total: (\S+)$`)
	prune := func(args ...string) string {
		t.Helper()
		out, _ := s.Run(append([]string{"prune", "--force"}, args...)...)
		return total.FindStringSubmatch(out)[1]
	}
	build()
	prune("--max-used-space", "1GB") // what nothing refers to goes in any case
	all := size()
	for _, args := range [][]string{
		{"--keep-duration", "1h"}, {"--filter", "until=1h"}, {"--max-used-space", "1GB"}, {"--reserved-space", "1GB"},
		{"--reserved-space", "1GB", "--max-used-space", "1MB"}, {"--min-free-space", "1B"}, {"--filter", "type=cachemount"}, {"--filter", "id=00nothing"},
	} {
		if got := prune(args...); got != "0B" {
			t.Errorf("prune %s removes %s", strings.Join(args, " "), got)
		}
	}
	prune("--max-used-space", "8MB")
	if n := size(); n > 8_200_000 || n < 5_000_000 {
		t.Errorf("the store takes %d of %d bytes, want no more than 8 MB and not much less", n, all)
	}
	prune("--reserved-space", "4MB", "--max-used-space", "1MB")
	if n := size(); n > 4_200_000 || n < 2_000_000 {
		t.Errorf("the store takes %d of %d bytes, want the 4 MB that are reserved", n, all)
	}
	prune("--keep-duration", "0s", "--all")
	if n := size(); n > 2_500_000 {
		t.Errorf("the store takes %d of %d bytes, want the base's at most", n, all)
	}
	build()
}
