package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// floor is what a case's work takes on this machine if no builder stands
// around it: no builder can be expected to be faster.
type floor struct {
	what string
	run  floorFunc
}

// floorFunc prepares work in w's directories, does it, and returns how long the
// latter took.
type floorFunc func(ctx context.Context, w *workspace) (time.Duration, error)

// floorCommand is the first word of bench's command line if it is to measure a
// floor: bench runs itself for that, so that the work is in a group like a tool's.
const floorCommand = "floor"

var floors = map[string]floor{
	"W1":   {"the compiler", compile(false)},
	"W3":   {"the compiler", compile(false)},
	"W3m":  {"the compiler", compile(true)},
	"W2":   {"walk", contextFiles(10000, 20000, walk)},
	"W4a":  {"step, deflate", step(pack(deflate))},
	"W4b":  {"step, deflate", step(pack(deflate))},
	"W4z":  {"step, zstd", step(pack(zstandard))},
	"W4r":  {"read, SHA-256", generated(hash)},
	"W5a":  {"namespaces, overlay", hundredSteps},
	"W5b":  {"sleep", timed(func(context.Context, *workspace) error { time.Sleep(2 * time.Second); return nil })},
	"W6":   {"append a layer", appendLayer},
	"W6l":  {"append a layer", appendLayer},
	"W6r":  {"unpack", timed(unpack)},
	"W7":   {"read, deflate", contextFiles(100000, 4000, pack(deflate))},
	"W7w":  {"walk", contextFiles(100000, 4000, walk)},
	"W7n":  {"walk", contextFiles(100000, 4000, walk)},
	"W7c":  {"read, SHA-256", contextFiles(100000, 4000, hash)},
	"noop": {"start a program", start},
}

// measureFloor measures the floor of a case n times and returns the median, 0 if
// the case has none.
func (b *bench) measureFloor(ctx context.Context, c benchCase, n int) (time.Duration, error) {
	if _, ok := floors[c.name]; !ok {
		return 0, nil
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	var all []sample
	for i := range n {
		d, err := b.floorOnce(ctx, self, c, i)
		if err != nil {
			return 0, err
		}
		all = append(all, sample{wall: d})
	}
	return median(all).wall, nil
}

func (b *bench) floorOnce(ctx context.Context, self string, c benchCase, i int) (time.Duration, error) {
	dir, err := os.MkdirTemp(b.dir, c.name+"-floor-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	g, err := b.newGroup()
	if err != nil {
		return 0, err
	}
	defer g.close()
	cmd := exec.CommandContext(ctx, self, floorCommand, c.name, dir, b.registry, strconv.Itoa(i))
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := g.start(cmd); err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, msg.Bytes())
	}
	return time.ParseDuration(strings.TrimSpace(out.String()))
}

// runFloor is the program that measureFloor starts.
func runFloor(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: bench %s CASE DIR REGISTRY RUN", floorCommand)
	}
	f, ok := floors[args[0]]
	if !ok {
		return fmt.Errorf("no floor of case %q", args[0])
	}
	run, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	w := &workspace{b: &bench{dir: args[1], registry: args[2]}, context: filepath.Join(args[1], "context"), out: filepath.Join(args[1], "out"), run: run}
	for _, d := range []string{w.context, w.out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	d, err := f.run(ctx, w)
	if err != nil {
		return err
	}
	fmt.Println(d)
	return nil
}
