package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// statusError is an answer that is not the one hoped for.
type statusError struct {
	host    string // that gave it
	status  int
	codes   []string // of the specification: "MANIFEST_UNKNOWN"
	message string
	// after is the value of Retry-After, or negative.
	after time.Duration
	// foreign: the answer is of a server that we were redirected to.
	foreign bool
	// refused: credentials were sent with the request.
	refused bool
}

func (e *statusError) Error() string {
	text := strconv.Itoa(e.status) + " " + http.StatusText(e.status)
	if e.message != "" {
		text += ": " + e.message
	}
	return e.host + " answered " + text
}

func (e *statusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return !e.foreign && e.status == http.StatusNotFound
	case ErrUnauthorized:
		return !e.foreign && (e.status == http.StatusUnauthorized || e.status == http.StatusForbidden)
	}
	return false
}

// readError reads an answer's body for what it says.
func readError(resp *http.Response) *statusError {
	e := &statusError{status: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	if resp.Request != nil {
		e.host = resp.Request.URL.Host
		e.foreign = resp.Request.Response != nil && resp.Request.Response.Request.URL.Host != resp.Request.URL.Host
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // of token servers
	}
	var messages []string
	if json.Unmarshal(body, &doc) == nil {
		for _, one := range doc.Errors {
			e.codes = append(e.codes, one.Code)
			if one.Message == "" {
				one.Message = one.Code
			}
			messages = append(messages, one.Message)
		}
		if len(messages) == 0 && doc.Details != "" {
			messages = []string{doc.Details}
		}
	} else if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		messages = []string{string(body)}
	}
	e.message = printable(strings.Join(messages, "; "))
	return e
}

// printable makes a stranger's text fit for one line of a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// retryAfter reads a Retry-After header: seconds or an HTTP date; negative if
// there is none.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return -1
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 32); err == nil {
		return time.Duration(max(n, 0)) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(t.Sub(now), 0)
	}
	return -1
}

// stallError tells that nothing moved.
type stallError struct{ after time.Duration }

func (e *stallError) Error() string {
	return fmt.Sprintf("stalled: no data for %s", e.after)
}

// Timeout implements [net.Error].
func (e *stallError) Timeout() bool { return true }

// Temporary implements [net.Error].
func (e *stallError) Temporary() bool { return true }

// permanent marks an error that another attempt would meet again.
type permanent struct{ error }

func (e permanent) Unwrap() error { return e.error }

// restart marks an error of an upload that a new upload may not meet.
type restart struct{ error }

func (r restart) Unwrap() error { return r.error }

// final reports whether there is no use in trying again after err.
func final(err error) bool {
	var r restart
	if errors.As(err, &r) {
		return false
	}
	var p permanent
	if errors.As(err, &p) {
		return true
	}
	var status *statusError
	if errors.As(err, &status) {
		switch status.status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return false
		}
		return !status.foreign // a signed address may have expired
	}
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &unknown) || errors.As(err, &hostname) ||
		errors.As(err, &invalid) || errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") ||
		strings.Contains(err.Error(), "unsupported protocol scheme") || strings.Contains(err.Error(), "stopped after 10 redirects")
}

// credentialError tells that stored credentials could not be read. It is no
// matter for registries that want none.
type credentialError struct{ error }

func (e credentialError) Unwrap() error { return e.error }

// explain makes an error for the person who asked for r.
func explain(ctx context.Context, what string, r ref, e *endpoint, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var status *statusError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	var dns *net.DNSError
	var cred credentialError
	switch {
	case errors.As(err, &cred):
		err = fmt.Errorf("%w: %s wants credentials, but: %w", ErrUnauthorized, r.domain, cred)
	case errors.As(err, &status) && status.status == http.StatusTooManyRequests:
		err = hint(err, "the registry limits how often it may be asked; a login may raise the limit")
	case errors.Is(err, ErrNotFound):
		err = &hinted{ErrNotFound, "check the name and the tag", err}
	case errors.Is(err, ErrUnauthorized) && status != nil && status.refused:
		err = &hinted{ErrUnauthorized, "the credentials stored for " + r.domain + " were refused or do not allow it; renew them by `strake login " + r.domain + "`", err}
	case errors.Is(err, ErrUnauthorized):
		err = &hinted{ErrUnauthorized, "there may be no such repository, or it wants `strake login " + r.domain + "`", err}
	case errors.As(err, &unknown):
		err = hint(err, "add the authority to the system's certificates, or allow "+e.addr+" as an insecure registry")
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		err = hint(err, e.addr+" speaks plain http: allow it as an insecure registry if you trust the network")
	case errors.As(err, &dns) && dns.IsNotFound:
		err = hint(err, "check the name, and whether this machine has a network")
	case errors.Is(err, syscall.ECONNREFUSED):
		err = hint(err, "nothing listens there")
	}
	return fmt.Errorf("%s: %w", strings.TrimSpace(what+" "+r.String()), err)
}

// hinted is an error with advice; the sentinel speaks for the cause.
type hinted struct {
	sentinel error
	advice   string
	cause    error
}

func (e *hinted) Error() string {
	text := e.sentinel.Error()
	var status *statusError
	if errors.As(e.cause, &status) && status.message != "" {
		text += " (" + status.host + ": " + status.message + ")"
	}
	return text + "; " + e.advice
}

func (e *hinted) Unwrap() []error { return []error{e.sentinel, e.cause} }

func hint(err error, advice string) error { return fmt.Errorf("%w; %s", err, advice) }
