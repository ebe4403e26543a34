package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"
)

// attempts counts what a transfer has been through.
type attempts struct {
	n int // since progress was last made
	// since is when that was; waits that the other side asked for move it.
	since time.Time
}

// progressed tells that data has moved: the count starts anew.
func (a *attempts) progressed() { a.n, a.since = 0, time.Now() }

// retry calls fn until it succeeds, fails for good, or makes no progress any
// more. Of mirrors (e) less is endured, as there is another place to ask.
func (c *Client) retry(ctx context.Context, e *endpoint, fn func(*attempts) error) error {
	a := &attempts{since: time.Now()}
	for {
		err := fn(a)
		if err == nil {
			return nil
		}
		if err := c.wait(ctx, e, a, err); err != nil {
			return err
		}
	}
}

// wait waits before the next attempt after err. It returns an error if there is
// to be none.
func (c *Client) wait(ctx context.Context, e *endpoint, a *attempts, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if final(err) {
		return err
	}
	a.n++
	most := c.limits.attempts
	var stall *stallError
	if errors.Is(err, syscall.ECONNREFUSED) {
		most = 3
	}
	if e != nil && e.mirror {
		most = 2
		if errors.As(err, &stall) {
			most = 1
		}
	}
	if a.n >= most || time.Since(a.since) >= c.limits.giveUp {
		if a.n > 1 {
			return fmt.Errorf("%w (%d attempts)", err, a.n)
		}
		return err
	}
	pause := c.limits.backoff << (a.n - 1)
	pause = pause/2 + rand.N(pause/2+1)
	var status *statusError
	if errors.As(err, &status) && status.after >= 0 {
		if status.after > c.limits.maxWait {
			return fmt.Errorf("%w; it asks to come back in %s", err, status.after.Round(time.Second))
		}
		pause = max(pause, status.after)
		a.since = a.since.Add(status.after)
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// request is a request to a repository.
type request struct {
	method string
	// suffix is what follows the repository's address ("/manifests/latest"),
	// or at is the whole address (an upload).
	suffix string
	at     *url.URL
	header http.Header
	// body has size bytes. A request with a body is sent once, whatever the
	// answer is.
	body io.Reader
	size int64
	// scopes are the token scopes that the request needs.
	scopes []string
	// accept are the statuses that are no error, besides 200.
	accept []int
	// patience is how long to wait for the answer, if not limits.header.
	patience time.Duration
}

// send sends a request with what authorization the host asks for, and returns
// the answer if its status is a good one. It does not retry but for that.
func (c *Client) send(ctx context.Context, e *endpoint, r request) (*http.Response, error) {
	if c.options.Offline {
		return nil, permanent{ErrOffline}
	}
	scopes := slices.Clone(r.scopes)
	// One 401 asks for a token, and one more is for a token that has ended: the
	// first may be answered by one that was given before.
	asked, ended := false, false
	for {
		scheme, decided := e.scheme()
		address := e.url(scheme, r.suffix)
		own := true
		if r.at != nil {
			address = r.at.String()
			own = sameHost(r.at, e.addr) && r.at.Scheme == scheme
		}
		req, err := http.NewRequestWithContext(ctx, r.method, address, r.body)
		if err != nil {
			return nil, permanent{err}
		}
		if r.body != nil {
			req.ContentLength = r.size
			if r.size == 0 {
				req.Body = http.NoBody
			}
		}
		for k, v := range r.header {
			req.Header[k] = v
		}
		used := ""
		if own {
			if used, err = c.authorization(ctx, e.host, scopes); err != nil {
				return nil, err
			}
			if used != "" {
				req.Header.Set("Authorization", used)
			}
		}
		patience := r.patience
		if patience == 0 {
			patience = c.limits.header
		}
		resp, err := c.roundTrip(req, patience)
		if !decided && own {
			if ctx.Err() == nil && c.wrongScheme(ctx, e.host, scheme, resp, err) && e.drop(scheme) {
				if resp != nil {
					resp.Body.Close()
				}
				continue
			}
			if err == nil {
				e.decide(scheme)
			}
		}
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusOK || slices.Contains(r.accept, resp.StatusCode):
			return resp, nil
		case resp.StatusCode == http.StatusUnauthorized && own && sameHost(resp.Request.URL, e.addr) &&
			!(used == "" && asked || used != "" && ended) && e.refuse(resp, used, &scopes):
			asked, ended = asked || used == "", ended || used != ""
			discard(resp)
			if r.body != nil {
				return nil, errUnsent
			}
		default:
			err := readError(resp)
			err.refused = used != "" && own && c.hasCredential(ctx, e.host)
			resp.Body.Close()
			return nil, err
		}
	}
}

// sameHost reports whether u is on the server addr.
func sameHost(u *url.URL, addr string) bool {
	if u.Host == addr {
		return true
	}
	port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	return u.Host == addr+port || u.Host+port == addr
}

// errUnsent: the token had expired; the body must be sent again.
var errUnsent = errors.New("the registry asked for a new token")

func (c *Client) hasCredential(ctx context.Context, h *host) bool {
	cred, err := c.config.get(ctx, h.key)
	return err == nil && (cred.Username != "" || cred.IdentityToken != "" || cred.RegistryToken != "")
}

// discard reads the rest of a short answer so that the connection can be used
// again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// roundTrip sends one request and watches it: an answer that takes longer than
// patience after the last byte of the request was taken, or a body, either way,
// that moves nothing for limits.stall, ends with a *stallError. Time that the
// reader of the request's body or of the answer takes for itself does not
// count.
func (c *Client) roundTrip(req *http.Request, patience time.Duration) (*http.Response, error) {
	if c.options.UserAgent != "" {
		req.Header.Set("User-Agent", c.options.UserAgent)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watchdog{cancel: cancel}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedUpload{ReadCloser: req.Body, w: w, stall: c.limits.stall, patience: patience}
		req.GetBody = nil
	}
	w.arm(patience)
	resp, err := c.http.Do(req.WithContext(ctx))
	w.mu.Lock()
	w.answered = true
	w.mu.Unlock()
	w.disarm()
	if err != nil {
		cancel(nil)
		return nil, unstall(ctx, err)
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, w: w, stall: c.limits.stall}
	return resp, nil
}

// unstall gives err its true cause, and drops the address that net/http puts
// before it: signed ones are secret.
func unstall(ctx context.Context, err error) error {
	var stall *stallError
	if errors.As(context.Cause(ctx), &stall) {
		return stall
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// watchdog cancels a request when it is armed for too long.
type watchdog struct {
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	timer    *time.Timer
	patience time.Duration
	deadline time.Time // zero: not armed
	answered bool      // the upload, which may go on for a moment, arms no more
}

func (w *watchdog) arm(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(d)
}

// armUpload is arm for the time until there is an answer.
func (w *watchdog) armUpload(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.answered {
		w.set(d)
	}
}

func (w *watchdog) set(d time.Duration) {
	w.patience, w.deadline = d, time.Now().Add(d)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, w.fire)
		return
	}
	w.timer.Reset(d)
}

func (w *watchdog) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = time.Time{}
	w.timer.Stop()
}

func (w *watchdog) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.deadline.IsZero() && !time.Now().Before(w.deadline) {
		w.cancel(&stallError{w.patience})
	}
}

// watchedBody is the body of an answer.
type watchedBody struct {
	io.ReadCloser
	ctx   context.Context
	w     *watchdog
	stall time.Duration
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.arm(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.w.disarm()
	if err != nil && err != io.EOF {
		err = unstall(b.ctx, err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.w.disarm()
	b.w.cancel(nil)
	return b.ReadCloser.Close()
}

// watchedUpload is the body of a request. The watch is on while the transport
// sends, and off while we make the next bytes.
type watchedUpload struct {
	io.ReadCloser
	w               *watchdog
	stall, patience time.Duration
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	b.w.disarm()
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.w.armUpload(b.patience)
	} else {
		b.w.armUpload(b.stall)
	}
	return n, err
}

// readAll reads a document of at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, permanent{fmt.Errorf("answer is longer than %d bytes", limit)}
	}
	return b, nil
}
