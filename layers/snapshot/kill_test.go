package snapshot_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/state"
)

// TestMain lets tests start another process that unpacks half a layer: this
// binary again.
func TestMain(m *testing.M) {
	if args := os.Getenv("SNAPSHOT_TEST_CHILD"); args != "" {
		fmt.Println("error:", unpackHalf(strings.Split(args, ",")))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// unpackHalf unpacks the first half of a blob, and waits for more.
func unpackHalf(args []string) error {
	root, err := state.Open(args[0])
	if err != nil {
		return err
	}
	s, err := snapshot.Open(root, snapshot.Options{Driver: &copydir.Driver{}})
	if err != nil {
		return err
	}
	data, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	_, err = s.Ensure(context.Background(), layers.Tree{layers.ID(args[1])}, snapshot.Sources{
		Blob: func(context.Context, snapshot.Layer, ocispec.Descriptor) (io.ReadCloser, error) {
			half := io.MultiReader(bytes.NewReader(data[:len(data)/2]), stall{})
			return io.NopCloser(half), nil
		},
	})
	return err
}

// stall says that it is reached, and reads until stdin ends: never.
type stall struct{}

func (stall) Read([]byte) (int, error) {
	fmt.Println("ready")
	return os.Stdin.Read(make([]byte, 1))
}

func TestKilledWhileUnpacking(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the other process has the options of root")
	}
	s := newStore(t)
	var entries []layers.Entry
	for i := range 2000 {
		entries = append(entries, file(fmt.Sprintf("f%05d", i), strings.Repeat("x", 100)))
	}
	p := pack(t, compress.None, entries...)
	id, src := s.add(t, p)
	blob := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(blob, p.data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SNAPSHOT_TEST_CHILD="+strings.Join([]string{s.root.Dir(), string(id), blob}, ","))
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "ready\n" {
		t.Errorf("child says %q, %v", line, err)
	}
	// It has read all there is, and may have to write some of it still.
	for {
		half, err := filepath.Glob(s.root.Path("tmp", "*", "unpack-*", "fs", "f*"))
		if err != nil || t.Context().Err() != nil {
			t.Fatalf("the child has unpacked %d files, %v", len(half), err)
		}
		if len(half) > 0 {
			break
		}
		runtime.Gosched()
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	next := openStore(t, s.root.Dir())
	next.noTemp(t)
	next.ensure(t, id, src)
}
