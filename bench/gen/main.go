// Command gen writes 1 GiB of deterministic files: `gen DIR CHANGED`. Half of
// each file is noise, half of it text. The content of the first 20 files, about
// 1 MB, depends on CHANGED.
package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	files = 20000
	size  = 53687
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gen DIR CHANGED")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func write(dir, changed string) error {
	buf := make([]byte, 0, size+64)
	for i := range files {
		seed := uint64(i)
		if i < 20 {
			for _, c := range changed {
				seed = seed*31 + uint64(c) + 1<<40
			}
		}
		r := rand.New(rand.NewPCG(seed, 2))
		buf = buf[:0]
		for len(buf) < size {
			for range 4 {
				buf = binary.LittleEndian.AppendUint64(buf, r.Uint64())
			}
			buf = append(buf, "the quick brown fox jumps over a "[:32]...)
		}
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/200))
		if i%200 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%05d", i)), buf[:size], 0o644); err != nil {
			return err
		}
	}
	return nil
}
