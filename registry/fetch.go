package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// Blob fetches a blob of the repository origin (see Image.Origin), or of one of
// its mirrors. The stream resumes by itself, and ends with an error if it does
// not have the digest and size of desc. report gets Status events with the
// action "downloading". Addresses in desc.URLs are never fetched: a registry
// could send us anywhere. An origin that is a URL is left to Options.Origins.
func (c *Client) Blob(ctx context.Context, origin string, desc ocispec.Descriptor, report progress.Func) (io.ReadCloser, error) {
	if strings.Contains(origin, "://") {
		return c.elsewhere(ctx, origin, desc, newMeter(report, desc, "downloading"))
	}
	r, err := parseRepository(origin)
	if err != nil {
		return nil, err
	}
	r.tag, r.digest = "", desc.Digest
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", r.repository(), err)
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("%s: size %d", r, desc.Size)
	}
	f := &fetch{
		c: c, ctx: ctx, ref: r, desc: desc,
		endpoints: c.endpoints(r, true),
		verifier:  desc.Digest.Verifier(),
		attempts:  &attempts{since: time.Now()},
		meter:     newMeter(report, desc, "downloading"),
	}
	if err := f.connect(); err != nil {
		return nil, err
	}
	return f, nil
}

// fetch is a blob on its way. Its fields belong to the reader.
type fetch struct {
	c         *Client
	ctx       context.Context
	ref       ref
	desc      ocispec.Descriptor
	endpoints []*endpoint // left to ask; the first is the current one
	attempts  *attempts
	mark      int64 // offset when progress was last counted

	body     io.ReadCloser // nil: to be opened at off
	off      int64
	verifier digest.Verifier
	meter    *meter
	err      error
}

// A connection that gave less than this counts as a failed attempt: a server
// that hangs up after every few bytes shall not hold us for ever.
const minProgress = 64 << 10

func (f *fetch) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if f.body == nil {
			if f.err = f.connect(); f.err != nil {
				return 0, f.err
			}
		}
		n, err := f.body.Read(p)
		if n > 0 {
			if f.off+int64(n) > f.desc.Size {
				f.err = f.fail(fmt.Errorf("is longer than its %d bytes", f.desc.Size))
				return 0, f.err
			}
			_, _ = f.verifier.Write(p[:n])
			f.off += int64(n)
			if f.off-f.mark >= minProgress {
				f.mark = f.off
				f.attempts.progressed()
			}
			f.meter.at(f.off)
		}
		switch {
		case err == nil:
			return n, nil
		case err == io.EOF && f.off == f.desc.Size:
			f.close()
			if f.verifier.Verified() {
				f.err = io.EOF
				f.meter.done()
			} else {
				f.err = f.fail(errors.New("content does not have this digest"))
			}
			return n, f.err
		case err == io.EOF:
			err = fmt.Errorf("ended after %d of %d bytes: %w", f.off, f.desc.Size, io.ErrUnexpectedEOF)
		}
		f.close()
		if f.err = f.again(err); f.err != nil || n > 0 {
			return n, f.err
		}
	}
}

// connect opens the blob at off.
func (f *fetch) connect() error {
	for {
		err := f.open()
		if err == nil {
			return nil
		}
		if err := f.again(err); err != nil {
			return err
		}
	}
}

// again decides what happens after err: a pause and another attempt, or another
// endpoint, or the end.
func (f *fetch) again(err error) error {
	e := f.endpoints[0]
	werr := f.c.wait(f.ctx, e, f.attempts, err)
	if werr == nil {
		return nil
	}
	if f.ctx.Err() == nil && len(f.endpoints) > 1 {
		e.pass(werr)
		f.endpoints = f.endpoints[1:]
		f.attempts = &attempts{since: time.Now()}
		return nil
	}
	return f.fail(werr)
}

func (f *fetch) fail(err error) error {
	f.close()
	if errors.Is(err, ErrNotFound) && len(f.desc.URLs) > 0 {
		return fmt.Errorf("%s: the registry has no copy of this foreign layer, and addresses in manifests are not followed: %w", f.ref, err)
	}
	return explain(f.ctx, "blob", f.ref, f.endpoints[0], err)
}

func (f *fetch) open() error {
	e := f.endpoints[0]
	req := request{
		method: http.MethodGet,
		suffix: "/blobs/" + f.desc.Digest.String(),
		header: http.Header{},
		scopes: pullScope(e.path),
	}
	if f.off > 0 {
		req.header.Set("Range", fmt.Sprintf("bytes=%d-", f.off))
		req.accept = []int{http.StatusPartialContent}
	}
	resp, err := f.c.send(f.ctx, e, req)
	if err != nil {
		return err
	}
	skip := f.off
	length := f.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		skip, length = 0, f.desc.Size-f.off
		if start, ok := rangeStart(resp.Header.Get("Content-Range")); !ok || start != f.off {
			resp.Body.Close()
			return permanent{fmt.Errorf("%s answered with the range %q to one from %d", e.addr, resp.Header.Get("Content-Range"), f.off)}
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != length {
		resp.Body.Close()
		return permanent{fmt.Errorf("%s has %d bytes of it where %d are due", e.addr, resp.ContentLength, length)}
	}
	f.c.answer(f.ref, e)
	f.body = resp.Body
	if skip > 0 { // the server knows no ranges
		if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
			f.close()
			return err
		}
	}
	return nil
}

// elsewhere opens a blob whose origin is a URL, and verifies it.
func (c *Client) elsewhere(ctx context.Context, origin string, desc ocispec.Descriptor, m *meter) (io.ReadCloser, error) {
	if c.options.Origins == nil {
		return nil, fmt.Errorf("%s: blobs can't be fetched from there", origin)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", origin, err)
	}
	r, err := c.options.Origins(ctx, origin, desc)
	if err != nil {
		return nil, fmt.Errorf("blob %s of %s: %w", desc.Digest, origin, err)
	}
	src := &source{ref: blob.Ref{Desc: desc}, r: r, verifier: desc.Digest.Verifier(), meter: m}
	return struct {
		io.Reader
		io.Closer
	}{src, r}, nil
}

// rangeStart reads the start of "bytes 5-9/10".
func rangeStart(s string) (int64, bool) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	start, _, dash := strings.Cut(rest, "-")
	n, err := strconv.ParseInt(start, 10, 64)
	return n, ok && dash && err == nil
}

func (f *fetch) close() {
	if f.body != nil {
		f.body.Close()
		f.body = nil
	}
}

// Close ends the transfer.
func (f *fetch) Close() error {
	f.close()
	if f.err == nil {
		f.err = errors.New("read after close")
	}
	return nil
}

// meter reports how far a transfer is, not more often than a person can see.
type meter struct {
	report progress.Func
	event  progress.Event
	next   time.Time
}

const meterPause = 100 * time.Millisecond

func newMeter(report progress.Func, desc ocispec.Descriptor, action string) *meter {
	if report == nil {
		report = progress.Discard
	}
	return &meter{report: report, event: progress.Event{
		Kind: progress.Status, ID: short(desc.Digest), Action: action, Total: desc.Size,
	}}
}

func (m *meter) at(n int64) {
	m.event.Current = n
	if now := time.Now(); now.After(m.next) {
		m.next = now.Add(meterPause)
		m.event.Time = now
		m.report(m.event)
	}
}

func (m *meter) done() {
	m.event.Current, m.event.Time = m.event.Total, time.Now()
	m.report(m.event)
}

// short is a digest as progress shows it.
func short(d digest.Digest) string {
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}
