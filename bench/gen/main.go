// Command gen writes deterministic files: `gen DIR MIB CHANGED SEED`. All
// contents depend on SEED, those of the first 20 files, about 1 MB, on CHANGED
// too.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/strake-build/strake/bench/content"
)

const size = 53687 // of a file: 20000 of them are 1 GiB

func main() {
	var mib int
	var changed, seed uint64
	if len(os.Args) == 5 {
		_, err := fmt.Sscan(strings.Join(os.Args[2:], " "), &mib, &changed, &seed)
		if err == nil {
			err = write(os.Args[1], mib<<20/size, changed, seed)
		}
		if err == nil {
			return
		}
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "usage: gen DIR MIB CHANGED SEED")
	os.Exit(2)
}

func write(dir string, files int, changed, seed uint64) error {
	buf := make([]byte, 0, size+64)
	for i := range files {
		second := seed << 32
		if i < 20 {
			second += changed
		}
		buf = content.Append(buf[:0], size, uint64(i), second)
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/200))
		if i%200 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%05d", i)), buf, 0o644); err != nil {
			return err
		}
	}
	return nil
}
