// Package web sends requests to servers of caches: it tries again after errors
// that may pass, waits as long as a server asks for, within reason, and lets
// none hang.
package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client sends requests. The zero value is ready but for HTTP.
type Client struct {
	HTTP *http.Client
	// Pause is the time before the second attempt; it doubles. 0 is 200 ms.
	Pause time.Duration
}

const (
	attempts = 5
	// longest is the longest Retry-After that is waited for.
	longest = time.Minute
	// header is how long an answer may take to begin, and stall how long a
	// body may pause.
	header = 20 * time.Second
	stall  = 20 * time.Second
)

// NewHTTP returns an HTTP client that waits for no server for ever. It follows
// no redirects: they would take credentials elsewhere.
func NewHTTP() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = header
	t.DisableCompression = true
	t.MaxIdleConnsPerHost = 16
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// StatusError is an answer that is none of those hoped for.
type StatusError struct {
	Host   string
	Status int
	Text   string // what the server says
	after  time.Duration
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", e.Host, e.Status, http.StatusText(e.Status))
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text
}

// Do sends the request that build makes, anew for each attempt, until the answer
// has a status of accept. The caller closes its body.
func (c *Client) Do(ctx context.Context, build func(context.Context) (*http.Request, error), accept ...int) (*http.Response, error) {
	pause := c.Pause
	if pause == 0 {
		pause = 200 * time.Millisecond
	}
	for n := 1; ; n++ {
		resp, err := c.once(ctx, build, accept)
		if err == nil {
			return resp, nil
		}
		wait, again := retry(err)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !again || n == attempts {
			return nil, err
		}
		if wait > longest {
			return nil, fmt.Errorf("%w; it asks to come back in %s", err, wait.Round(time.Second))
		}
		t := time.NewTimer(max(wait, pause/2+rand.N(pause/2+1)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
		pause *= 2
	}
}

func (c *Client) once(ctx context.Context, build func(context.Context) (*http.Request, error), accept []int) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := build(ctx)
	if err != nil {
		cancel(nil)
		return nil, permanent{err}
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		cancel(nil)
		var u *url.Error // has the address, and so what may be signed
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	for _, status := range accept {
		if resp.StatusCode == status {
			resp.Body = &body{r: resp.Body, cancel: cancel, timer: time.AfterFunc(time.Hour, func() { cancel(errStall) }), ctx: ctx}
			return resp, nil
		}
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	resp.Body.Close()
	cancel(nil)
	after := time.Duration(-1)
	if s := resp.Header.Get("Retry-After"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			after = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(s); err == nil {
			after = max(time.Until(t), 0)
		}
	}
	return nil, &StatusError{Host: req.URL.Host, Status: resp.StatusCode, Text: oneLine(string(text)), after: after}
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func retry(err error) (wait time.Duration, again bool) {
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return status.after, true
		}
		return 0, false
	}
	var p permanent
	var dns *net.DNSError
	return 0, !errors.As(err, &p) && !(errors.As(err, &dns) && dns.IsNotFound)
}

// oneLine makes a stranger's text fit for one line.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

var errStall = stallError{}

// stallError is a [net.Error].
type stallError struct{}

func (stallError) Error() string   { return fmt.Sprintf("stalled: no data for %s", stall) }
func (stallError) Timeout() bool   { return true }
func (stallError) Temporary() bool { return true }

// body is an answer's, with an eye on it while it is read.
type body struct {
	r      io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(stall)
	n, err := b.r.Read(p)
	b.timer.Reset(time.Hour) // the reader may take its time
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errStall) {
		err = errStall
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.r.Close()
}
