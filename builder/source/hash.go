package source

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ensureSum makes sure that a file's digest is known. One goroutine reads the
// file however many want that; if it gives up another one takes over.
func (d *Dir) ensureSum(ctx context.Context, n *node, path string) error {
	for !n.isHashed() {
		if !atomic.CompareAndSwapUint32(&n.state, unknown, beingRead) {
			if err := d.await(ctx, n); err != nil {
				return err
			}
			continue
		}
		sum, err := d.hash(ctx, n, path)
		if err == nil {
			n.setDigest(sum)
		} else {
			atomic.StoreUint32(&n.state, unknown)
		}
		d.wake()
		if err != nil {
			return err
		}
	}
	return nil
}

// await waits until a file that another goroutine reads may have been hashed.
func (d *Dir) await(ctx context.Context, n *node) error {
	d.mu.Lock()
	if d.over == nil {
		d.over = make(chan struct{})
	}
	over := d.over
	d.awaited.Store(true)
	d.mu.Unlock()
	if atomic.LoadUint32(&n.state) != beingRead { // wake may have come before
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wake tells those who wait for any file that one is no longer read.
func (d *Dir) wake() {
	if !d.awaited.Load() { // hardly ever does anybody
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over != nil {
		close(d.over)
	}
	d.over = nil
	d.awaited.Store(false)
}

var hashBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

func (d *Dir) hash(ctx context.Context, n *node, path string) (sum [32]byte, err error) {
	if n.id.size == 0 {
		return sha256.Sum256(nil), nil
	}
	begun := time.Now()
	f, err := d.open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	buf := hashBuffers.Get().(*[256 << 10]byte)
	defer hashBuffers.Put(buf)
	r := reader{ctx: ctx, f: f, path: path, id: n.id, left: n.id.size}
	if sum, err = r.sum(buf[:]); err != nil {
		return sum, fmt.Errorf("read %w", err)
	}
	if d.o.Index != nil && d.filesys.settled(f.fd, n.id, begun) {
		d.o.Index.learn(record{identity: n.id, sum: sum, capability: n.rare != nil && n.rare.capability != ""})
	}
	return sum, nil
}

// sum is the digest of what there is to read.
func (r *reader) sum(buf []byte) (sum [32]byte, err error) {
	k, err := r.Read(buf)
	if err == io.EOF { // most files are small
		return sha256.Sum256(buf[:k]), nil
	}
	h := sha256.New()
	for ; err == nil; k, err = r.Read(buf) {
		h.Write(buf[:k])
	}
	if err != io.EOF {
		return sum, err
	}
	h.Write(buf[:k])
	return [32]byte(h.Sum(nil)), nil
}

// filesystems knows how exact the clocks of file systems are, by device.
type filesystems struct {
	slack sync.Map // uint64 → time.Duration
}

// settled reports whether a file that changes after begun is sure to have other
// times than it has in id. Times are taken from a clock that ticks (every 1 to
// 10 ms), and some file systems keep no more than seconds of it or take it from
// another machine.
func (s *filesystems) settled(fd int, id identity, begun time.Time) bool {
	v, ok := s.slack.Load(id.dev)
	if !ok {
		v = 3 * time.Second
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil {
			switch int64(st.Type) {
			case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC,
				unix.OVERLAYFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, zfsMagic, bcachefsMagic:
				v = 20 * time.Millisecond
			}
		}
		s.slack.Store(id.dev, v)
	}
	slack := v.(time.Duration)
	if id.mtime%1e9 == 0 && id.ctime%1e9 == 0 {
		slack = 3 * time.Second // ext3 and the like
	}
	return max(id.mtime, id.ctime)+int64(slack) < begun.UnixNano()
}

const (
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)

// parallel calls fn for 0 to n-1, from a few goroutines, until one fails.
func parallel(ctx context.Context, workers, n int, fn func(ctx context.Context, i int) error) error {
	if n == 0 {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(workers, n) {
		g.Go(func() error {
			for {
				i := int(next.Add(1) - 1)
				if i >= n {
					return nil
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := fn(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}
