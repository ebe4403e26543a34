// Package httpsource fetches single files by http and https.
//
// A Client remembers what a URL gave and by which validators (ETag,
// Last-Modified) its server knows it, so that a file that did not change is not
// fetched again.
//
//	d, err := c.Resolve(ctx, op)             // for the key of the step
//	entries, err := c.Fetch(ctx, op, dir)    // on a miss
package httpsource

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/state"
)

const (
	maxRedirects = 10
	// keepFor is how long a file that nobody fetched after it was resolved is
	// kept.
	keepFor = 24 * time.Hour
	// idle is how long a server may send nothing.
	idle = 60 * time.Second
)

// Options says how a Client works. The zero value is the default.
type Options struct {
	// Transport makes the requests; nil: http.DefaultTransport with bounded
	// waits for connections and headers.
	Transport http.RoundTripper
	// MaxSize bounds a file, in bytes; 0 is 64 GiB.
	MaxSize int64
	// TempFile makes a temporary file on the file system of the Client's
	// directory; nil: in it, where a killed process leaves it for a day.
	TempFile func(prefix string) (*os.File, error)
	// Offline: no server is asked. What is remembered of a URL holds.
	Offline bool
	// UserAgent is sent with each request; empty: "strake".
	UserAgent string
}

// Client fetches files. Its directory may be used by many processes.
type Client struct {
	dir  string
	http *http.Client
	o    Options
}

// Open returns a client that remembers in dir, which is made if missing.
func Open(dir string, o Options) (*Client, error) {
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o700); err != nil {
		return nil, err
	}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
		t.ResponseHeaderTimeout = idle
		o.Transport = t
	}
	if o.TempFile == nil {
		o.TempFile = func(prefix string) (*os.File, error) { return os.CreateTemp(filepath.Join(dir, "files"), prefix+"-") }
	}
	if o.MaxSize == 0 {
		o.MaxSize = 64 << 30
	}
	if o.UserAgent == "" {
		o.UserAgent = "strake"
	}
	return &Client{dir: dir, o: o, http: &http.Client{
		Transport: o.Transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			if req.URL.Scheme == "http" && via[0].URL.Scheme == "https" {
				return errors.New("redirect from https to http")
			}
			return nil
		},
	}}, nil
}

// memo is what is remembered of a URL.
type memo struct {
	URL          string        `json:"url"`
	Digest       digest.Digest `json:"digest"`
	ETag         string        `json:"etag,omitempty"`
	LastModified string        `json:"lastModified,omitempty"`
}

// Resolve returns the digest of the file. If op has a checksum that is it, and
// nothing is asked for. Else the server is asked, and a file that is new is
// fetched.
func (c *Client) Resolve(ctx context.Context, op *plan.HTTP) (digest.Digest, error) {
	if op.Checksum != "" {
		return op.Checksum, op.Checksum.Validate()
	}
	m, known := c.recall(op.URL)
	if c.o.Offline {
		if !known {
			return "", fmt.Errorf("%s: not fetched before, and nothing is fetched offline", op.URL)
		}
		return m.Digest, nil
	}
	if known && (m.ETag != "" || m.LastModified != "") {
		if same, err := c.unchanged(ctx, op.URL, m); err != nil || same {
			return m.Digest, err
		}
	}
	name, d, err := c.get(ctx, op)
	if err != nil {
		return "", err
	}
	return d, state.Place(name, c.file(d))
}

// LastModified is when the server says that the file was changed; the zero time
// if it doesn't.
func (c *Client) LastModified(ctx context.Context, op *plan.HTTP) (time.Time, error) {
	if _, known := c.recall(op.URL); !known || op.Checksum == "" {
		if _, err := c.Resolve(ctx, &plan.HTTP{URL: op.URL}); err != nil {
			return time.Time{}, err
		}
	}
	m, _ := c.recall(op.URL)
	at, err := http.ParseTime(m.LastModified)
	if err != nil {
		return time.Time{}, nil
	}
	return at.UTC(), nil
}

// Fetch puts the file into the directory dir, which is the caller's, and
// returns the entry of it for a tree that has nothing else.
func (c *Client) Fetch(ctx context.Context, op *plan.HTTP, dir string) ([]layers.Entry, error) {
	if err := checkName(op.Filename); err != nil {
		return nil, err
	}
	d, err := c.Resolve(ctx, op)
	if err != nil {
		return nil, err
	}
	staged := filepath.Join(dir, "file")
	// Another process may take it first, or the directory be elsewhere.
	if os.Rename(c.file(d), staged) != nil || verify(staged, d) != nil {
		if c.o.Offline {
			return nil, fmt.Errorf("%s: its content is not in the store any more, and nothing is fetched offline", op.URL)
		}
		name, got, err := c.get(ctx, op)
		if err != nil {
			return nil, err
		}
		d = got
		if err := state.Place(name, staged); err != nil {
			err = errors.Join(move(name, staged), os.Remove(name))
			if err != nil {
				return nil, err
			}
		}
	}
	st, err := os.Stat(staged)
	if err != nil {
		return nil, err
	}
	mode := op.Mode & 0o7777
	if mode == 0 {
		mode = 0o600
	}
	return []layers.Entry{{
		Path: op.Filename, Type: layers.Regular, Mode: mode, UID: op.UID, GID: op.GID, Size: st.Size(),
		ModTime: layers.DefaultModTime, Digest: d, Origin: layers.Origin{Staged: staged},
	}}, nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || !fs.ValidPath(name) || filepath.Base(name) != name {
		return fmt.Errorf("%q can't be the name of a file", name)
	}
	return nil
}

func verify(name string, d digest.Digest) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := digest.SHA256.FromReader(f)
	if err == nil && got != d {
		err = fmt.Errorf("%s has digest %s", name, got)
	}
	return err
}

func move(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (c *Client) file(d digest.Digest) string { return filepath.Join(c.dir, "files", d.Encoded()) }

func (c *Client) memoFile(u string) string {
	sum := sha256.Sum256([]byte(u))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:])+".json")
}

// recall returns what is remembered; a damaged memo is none.
func (c *Client) recall(u string) (memo, bool) {
	var m memo
	f, err := os.Open(c.memoFile(u))
	if err != nil {
		return m, false
	}
	defer f.Close()
	err = json.NewDecoder(io.LimitReader(f, 64<<10)).Decode(&m)
	return m, err == nil && m.URL == u && m.Digest.Validate() == nil && m.Digest.Algorithm() == digest.SHA256
}

// remember writes a memo; what can't be remembered is asked again.
func (c *Client) remember(m memo) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := c.o.TempFile("http")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = state.Place(f.Name(), c.memoFile(m.URL))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func (c *Client) request(ctx context.Context, method, u string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	if (req.URL.Scheme != "http" && req.URL.Scheme != "https") || req.URL.Host == "" {
		return nil, errors.New("not an http or https URL")
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	// The file is to be what the server has, not what a transport unpacked.
	req.Header.Set("Accept-Encoding", "identity")
	return req, nil
}

// unchanged asks whether the file is still the one remembered.
func (c *Client) unchanged(ctx context.Context, u string, m memo) (bool, error) {
	req, err := c.request(ctx, http.MethodHead, u)
	if err != nil {
		return false, redact(u, err)
	}
	if m.ETag != "" {
		req.Header.Set("If-None-Match", m.ETag)
	} else {
		req.Header.Set("If-Modified-Since", m.LastModified)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		return false, nil // GET has the say
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified:
		return true, nil
	case resp.StatusCode != http.StatusOK:
		return false, nil
	case m.ETag != "":
		return resp.Header.Get("ETag") == m.ETag, nil
	}
	return resp.Header.Get("Last-Modified") == m.LastModified, nil
}

// get fetches the file into a temporary one and remembers it.
func (c *Client) get(ctx context.Context, op *plan.HTTP) (name string, d digest.Digest, err error) {
	c.clean()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() { err = redact(op.URL, err) }()
	req, err := c.request(ctx, http.MethodGet, op.URL)
	if err != nil {
		return "", "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("the server answers %q", resp.Status)
	}
	if resp.ContentLength > c.o.MaxSize {
		return "", "", fmt.Errorf("the file has %d bytes, more than the limit of %d", resp.ContentLength, c.o.MaxSize)
	}
	f, err := c.o.TempFile("http")
	if err != nil {
		return "", "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name())
		}
	}()
	algorithm := digest.SHA256
	if op.Checksum != "" {
		if err := op.Checksum.Validate(); err != nil {
			return "", "", fmt.Errorf("checksum %q: %w", op.Checksum, err)
		}
		algorithm = op.Checksum.Algorithm()
	}
	h, want := digest.SHA256.Hash(), algorithm.Hash()
	// A server that stops sending would hold the build for ever.
	stalled := time.AfterFunc(idle, func() { cancel(fmt.Errorf("the server sent nothing for %v", idle)) })
	defer stalled.Stop()
	body := io.LimitReader(resp.Body, c.o.MaxSize+1)
	var size int64
	buf := make([]byte, 128<<10)
	for {
		n, rerr := body.Read(buf)
		stalled.Reset(idle)
		size += int64(n)
		h.Write(buf[:n])
		want.Write(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			return "", "", err
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			if ctx.Err() != nil {
				rerr = context.Cause(ctx)
			}
			return "", "", rerr
		}
	}
	if size > c.o.MaxSize {
		return "", "", fmt.Errorf("the file is larger than the limit of %d bytes", c.o.MaxSize)
	}
	if got := digest.NewDigest(algorithm, want); op.Checksum != "" && got != op.Checksum {
		return "", "", fmt.Errorf("the file has the checksum %s, not %s as expected", got, op.Checksum)
	}
	d = digest.NewDigest(digest.SHA256, h)
	m := memo{URL: op.URL, Digest: d, ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
	if err := c.remember(m); err != nil {
		return "", "", err
	}
	return f.Name(), d, nil
}

// clean removes files that were never fetched, of killed processes and of steps
// that turned out to be cached.
func (c *Client) clean() {
	files, _ := os.ReadDir(filepath.Join(c.dir, "files"))
	for _, f := range files {
		if st, err := f.Info(); err == nil && time.Since(st.ModTime()) > keepFor {
			_ = os.Remove(filepath.Join(c.dir, "files", f.Name()))
		}
	}
}

// redact names the URL in an error, without the password in it.
func redact(u string, err error) error {
	if err == nil {
		return nil
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if p, perr := url.Parse(u); perr == nil {
		u = p.Redacted()
	}
	return fmt.Errorf("fetch %s: %w", u, err)
}
