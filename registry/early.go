package registry

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// Early is a push that begins before there is something to push: blobs are sent
// while they are made. What comes of that is no more than a head start. What
// could not be sent, Push sends like any other blob.
type Early struct {
	p      *pusher
	ctx    context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	over bool
	sent []*earlyBlob
}

// earlyBlob is a blob that is sent while it is made.
type earlyBlob struct {
	*upload
	f     *blob.Follower
	done  chan struct{} // closed when what follows is there
	there bool          // the registry had it
	err   error         // nil: the registry has it
}

// Blobs up to this size are not sent early: it would save less than it costs.
const earlySize = 4 << 20

// Early begins a push to reference, which it checks. It sends until ctx ends or
// Close is called, which must be.
func (c *Client) Early(ctx context.Context, reference string, report progress.Func) (*Early, error) {
	p, err := c.newPusher(reference, report)
	if err != nil {
		return nil, err
	}
	e := &Early{p: p}
	e.ctx, e.cancel = context.WithCancel(ctx)
	return e, nil
}

// Send sends a blob that is being made, and closes f. It does not wait.
func (e *Early) Send(f *blob.Follower) {
	b := &earlyBlob{f: f, done: make(chan struct{})}
	b.upload = &upload{pusher: e.p, scopes: pushScope(e.p.endpoint.path)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		f.Close()
		return
	}
	e.sent = append(e.sent, b)
	go func() {
		defer close(b.done)
		defer f.Close()
		defer context.AfterFunc(e.ctx, func() { f.Close() })()
		b.err = b.stream(e.ctx)
	}()
}

// Push is Client.Push to the reference of e, which has begun already.
func (e *Early) Push(ctx context.Context, m *Manifest) error {
	e.mu.Lock()
	e.p.early = e.sent
	e.mu.Unlock()
	return e.p.push(ctx, m)
}

// Close ends what is still being sent.
func (e *Early) Close() {
	e.mu.Lock()
	e.over = true
	sent := e.sent
	e.mu.Unlock()
	e.cancel()
	for _, b := range sent {
		<-b.done
	}
}

var (
	errSmall = errors.New("the blob is too small to be sent early")
	errShort = errors.New("the registry did not take all of the blob")
)

// stream sends the blob as it grows. It fails at the first error: an ordinary
// upload knows better what to do about it, and goes on from there if it can.
func (b *earlyBlob) stream(ctx context.Context) error {
	if !b.f.Wait(earlySize) {
		return errSmall
	}
	if err := b.begin(ctx); err != nil {
		return err
	}
	b.tried = true
	asking, stop := context.WithCancel(ctx)
	defer stop()
	var asked sync.WaitGroup
	asked.Go(func() { b.ask(asking) })
	body := &earlyBody{Follower: b.f, report: b.report}
	resp, err := b.c.send(ctx, b.endpoint, request{
		method: http.MethodPatch, at: b.location, scopes: b.scopes,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   body, size: -1,
		accept: []int{http.StatusAccepted, http.StatusCreated, http.StatusNoContent},
	})
	all := body.all.Load()
	b.f.Close()
	stop()
	asked.Wait()
	switch {
	case b.there:
		if err == nil {
			discard(resp)
		}
		return nil
	case err != nil:
		var status *statusError
		if errors.As(err, &status) {
			b.location = nil
		}
		return err
	}
	discard(resp)
	if b.moved(resp); !all {
		return errShort
	}
	b.ref.Desc.Digest, b.ref.Desc.Size = b.f.Blob()
	b.off = b.ref.Desc.Size
	return b.send(ctx)
}

// ask asks the registry for the blob when its digest is known: it may have it
// from another place or time. Then sending ends.
func (b *earlyBlob) ask(ctx context.Context) {
	b.f.Wait(math.MaxInt64)
	d, size := b.f.Blob()
	if d == "" {
		return
	}
	there, err := b.exists(ctx, ocispec.Descriptor{Digest: d, Size: size})
	if err == nil && there {
		b.there = true
		b.f.Close()
	}
}

// earlyBody is the body of the request. It reports when there is something to
// be waited for: when the blob is made and not yet sent.
type earlyBody struct {
	*blob.Follower
	report progress.Func
	meter  *meter
	off    int64
	all    atomic.Bool // it was read to its end
}

func (b *earlyBody) Read(p []byte) (int, error) {
	n, err := b.Follower.Read(p)
	b.off += int64(n)
	if b.meter == nil {
		if d, size := b.Blob(); d != "" {
			b.meter = newMeter(b.report, ocispec.Descriptor{Digest: d, Size: size}, "pushing")
		}
	}
	if b.meter != nil && n > 0 {
		b.meter.at(b.off)
	}
	if err == io.EOF {
		b.all.Store(true)
	}
	return n, err
}
