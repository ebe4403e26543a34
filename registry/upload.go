package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers/blob"
)

// upload sends a blob. It begins an upload (POST), sends the bytes (PATCH) and
// ends it with the digest (PUT); small blobs go with the PUT. After an error it
// asks the registry how much it has and continues there, or begins anew.
type upload struct {
	*pusher
	ref    blob.Ref
	meter  *meter
	scopes []string

	location *url.URL // nil: to be begun
	// tried: bytes or the end of the upload were sent, so that the registry
	// may have more than we know.
	tried bool
	off   int64 // that the registry is known to have
}

// Blobs up to this size go with one request.
const smallBlob = 1 << 20

// A registry may hash or move the whole blob before it confirms it: it gets
// more time the larger it is, by this many bytes a second.
const finishRate = 16 << 20

func (u *upload) run(ctx context.Context) error {
	return u.c.retry(ctx, nil, func(a *attempts) error {
		if u.tried {
			there, err := u.exists(ctx, u.ref.Desc)
			if err != nil || there {
				return err
			}
			if err := u.resume(ctx, a); err != nil {
				return err
			}
		}
		if u.location == nil {
			if err := u.begin(ctx); err != nil {
				return err
			}
		}
		err := u.send(ctx)
		var status *statusError
		if errors.As(err, &status) {
			switch status.status {
			case http.StatusNotFound, http.StatusConflict, http.StatusRequestedRangeNotSatisfiable:
				u.location = nil
				return restart{err}
			case http.StatusBadRequest:
				u.location = nil
				if u.off > 0 { // resuming went wrong
					return restart{err}
				}
			}
		}
		return err
	})
}

// begin starts a new upload.
func (u *upload) begin(ctx context.Context) error {
	resp, err := u.c.send(ctx, u.endpoint, request{
		method: http.MethodPost,
		suffix: "/blobs/uploads/",
		body:   nil,
		header: http.Header{"Content-Length": {"0"}},
		scopes: u.scopes,
		accept: []int{http.StatusAccepted},
	})
	if err != nil {
		return err
	}
	discard(resp)
	u.off = 0
	if u.moved(resp); u.location == nil {
		return permanent{fmt.Errorf("%s began an upload but did not say where", u.endpoint.addr)}
	}
	return nil
}

// moved takes over where the upload goes on.
func (u *upload) moved(resp *http.Response) {
	header := resp.Header.Get("Location")
	if header == "" {
		return
	}
	at, err := resp.Request.URL.Parse(header)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" {
		return
	}
	// Registries behind a proxy often don't know that they are spoken to by
	// https.
	if at.Scheme == "http" && resp.Request.URL.Scheme == "https" && at.Host == resp.Request.URL.Host {
		at.Scheme = "https"
	}
	u.location = at
}

// resume asks what the registry has of the upload. If it does not tell, the
// upload begins anew.
func (u *upload) resume(ctx context.Context, a *attempts) error {
	if u.location == nil {
		return nil
	}
	resp, err := u.c.send(ctx, u.endpoint, request{
		method: http.MethodGet,
		at:     u.location,
		scopes: u.scopes,
		accept: []int{http.StatusNoContent, http.StatusAccepted},
	})
	if err != nil {
		if !final(err) {
			return err
		}
		u.location = nil
		return nil
	}
	discard(resp)
	had := u.off
	u.off = 0
	if end, ok := rangeEnd(resp.Header.Get("Range")); ok && end < u.ref.Desc.Size {
		u.off = end + 1
	} else {
		u.location = nil
		return nil
	}
	u.moved(resp)
	if u.off-had >= minProgress {
		a.progressed()
	}
	return nil
}

// rangeEnd reads the end of "0-9", or of "bytes=0-9". Registries say "0-0" for
// nothing, too, which we must not take for one byte: it is told as not ok.
func rangeEnd(s string) (int64, bool) {
	start, end, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	n, err := strconv.ParseInt(end, 10, 64)
	return n, ok && start == "0" && err == nil && n > 0
}

// send sends the bytes from off and ends the upload.
func (u *upload) send(ctx context.Context) error {
	size := u.ref.Desc.Size
	u.tried = true
	finish := u.c.limits.header + time.Duration(size/finishRate)*time.Second
	if u.off < size && (size > smallBlob || u.off > 0) {
		resp, err := u.body(ctx, request{method: http.MethodPatch, at: u.location, accept: []int{http.StatusAccepted, http.StatusCreated, http.StatusNoContent}})
		if err != nil {
			return err
		}
		discard(resp)
		u.moved(resp)
		u.off = size
	}
	at := *u.location
	q := at.Query()
	q.Set("digest", u.ref.Desc.Digest.String())
	at.RawQuery = q.Encode()
	end := request{method: http.MethodPut, at: &at, patience: finish, accept: []int{http.StatusCreated, http.StatusAccepted, http.StatusNoContent}}
	var resp *http.Response
	var err error
	if u.off < size {
		resp, err = u.body(ctx, end)
	} else {
		end.scopes = u.scopes
		end.header = http.Header{"Content-Length": {"0"}}
		resp, err = u.c.send(ctx, u.endpoint, end)
	}
	if err != nil {
		return err
	}
	discard(resp)
	return nil
}

// body sends r with the blob's bytes from off.
func (u *upload) body(ctx context.Context, r request) (*http.Response, error) {
	if u.ref.Open == nil {
		return nil, permanent{errors.New("content is not at hand")}
	}
	content, err := u.ref.Open(ctx)
	if err != nil {
		return nil, permanent{err}
	}
	src := &source{ref: u.ref, r: content, verifier: unverified{}, meter: u.meter}
	if !blob.Verifies(content, u.ref.Desc.Digest) {
		src.verifier = u.ref.Desc.Digest.Verifier()
	}
	defer content.Close()
	if err := src.skip(u.off); err != nil {
		return nil, permanent{err}
	}
	r.scopes = u.scopes
	r.body, r.size = src, u.ref.Desc.Size-u.off
	r.header = http.Header{"Content-Type": {"application/octet-stream"}}
	if u.off > 0 {
		r.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.off, u.ref.Desc.Size-1))
	}
	resp, err := u.c.send(ctx, u.endpoint, r)
	if serr := src.stop(); serr != nil {
		if resp != nil {
			resp.Body.Close()
		}
		return nil, permanent{serr}
	}
	return resp, err
}

// source reads a blob and checks that it is what it should be. net/http may
// read on for a moment after it has returned an answer, so that there is a lock.
type source struct {
	ref blob.Ref

	mu       sync.Mutex
	r        io.Reader
	off      int64
	verifier digest.Verifier
	stopped  bool
	err      error // of the blob: of no connection
	meter    *meter
}

// unverified takes everything for right, as what a blob.Store gives is.
type unverified struct{}

func (unverified) Write(p []byte) (int, error) { return len(p), nil }
func (unverified) Verified() bool              { return true }

// skip passes over what the registry has.
func (s *source) skip(n int64) error {
	got, err := io.CopyN(s.verifier, s.r, n)
	s.off = got
	if err != nil {
		return s.broken(err)
	}
	return nil
}

func (s *source) broken(err error) error {
	if err == io.EOF {
		err = fmt.Errorf("ends after %d of %d bytes", s.off, s.ref.Desc.Size)
	}
	return fmt.Errorf("content to be sent: %w", err)
}

func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return 0, io.ErrClosedPipe
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	_, _ = s.verifier.Write(p[:n])
	s.off += int64(n)
	size := s.ref.Desc.Size
	switch {
	case s.off > size:
		s.err = s.broken(fmt.Errorf("is longer than %d bytes", size))
	case err == io.EOF && s.off < size, err != nil && err != io.EOF:
		s.err = s.broken(err)
	case s.off == size && !s.verifier.Verified():
		s.err = s.broken(errors.New("does not have its digest"))
	}
	if s.err != nil {
		// The last bytes are held back: the registry can't take the blob for
		// complete.
		return 0, s.err
	}
	s.meter.at(s.off)
	return n, err
}

// stop ends reading and returns what was wrong with the blob, if anything.
func (s *source) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	return s.err
}
