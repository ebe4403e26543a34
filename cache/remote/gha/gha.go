// Package gha keeps a remote cache in the cache service of GitHub Actions, by
// the second version of its protocol: a JSON call (Twirp) names an entry and
// gives an address, which is Azure's blob storage, to read or write it.
//
// Entries never change: one that replaces another has a longer key, and the
// newest of those that begin alike is found.
//
//	strake1-…-0            objects
//	strake1-b-<hex>-0      blobs
package gha

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/internal/web"
	"github.com/strake-build/strake/layers/blob"
)

// Scheme is that of origins: gha:///?scope=…
const Scheme = "gha"

// Service is a cache in the service of a workflow run.
type Service struct {
	web     web.Client
	url     string
	token   string
	scope   string
	version string // of objects; blobs are the same in every scope
	text    string

	mu     sync.Mutex
	broken map[string]bool // keys that the service knows, and has nothing for
}

var _ remote.Backend = (*Service)(nil)

// Open returns the cache that the attributes of a flag name, with address and
// token of the environment: ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN, which
// a workflow has to pass on to its steps.
func Open(attrs map[string]string, getenv func(string) string, text string) (*Service, error) {
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	s := &Service{
		web:   web.Client{HTTP: web.NewHTTP()},
		url:   first(attrs["url_v2"], getenv("ACTIONS_RESULTS_URL")),
		token: first(attrs["token"], getenv("ACTIONS_RUNTIME_TOKEN")),
		scope: first(attrs["scope"], "buildkit"), text: text, broken: map[string]bool{},
	}
	if attrs["version"] == "1" {
		return nil, errors.New("version=1: GitHub has switched the first version of its cache service off; the second is spoken")
	}
	if s.url == "" || s.token == "" {
		return nil, errors.New("ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN are not set: GitHub gives them to actions, and a workflow passes them on to its steps by crazy-max/ghaction-github-runtime")
	}
	u, err := url.Parse(s.url)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("ACTIONS_RESULTS_URL=%s is not a URL", s.url)
	}
	s.url = strings.TrimSuffix(s.url, "/")
	s.version = version(s.scope)
	return s, nil
}

// OpenOrigin returns the cache of an origin.
func OpenOrigin(origin *url.URL, getenv func(string) string) (*Service, error) {
	return Open(map[string]string{"scope": origin.Query().Get("scope")}, getenv, origin.String())
}

// version is what the service keeps entries apart by.
func version(of string) string {
	sum := sha256.Sum256([]byte("strake/1\n" + of))
	return hex.EncodeToString(sum[:])
}

var blobVersion = version("blobs")

// call calls a method of the service. sent is how often that took to be answered.
func (s *Service) call(ctx context.Context, method string, in map[string]any, out any) (sent int, err error) {
	data, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	resp, err := s.web.Do(ctx, func(ctx context.Context) (*http.Request, error) {
		sent++
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/twirp/github.actions.results.api.v1.CacheService/"+method, bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+s.token)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "strake")
		return req, nil
	}, http.StatusOK)
	if err != nil {
		return sent, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out); err != nil {
		return sent, fmt.Errorf("%s: %w", method, err)
	}
	return sent, nil
}

// find returns the address of the newest entry whose key begins with key;
// ErrNotFound if there is none.
func (s *Service) find(ctx context.Context, key, version string) (string, error) {
	var out struct {
		OK          bool   `json:"ok"`
		Snake       string `json:"signed_download_url"`
		Camel       string `json:"signedDownloadUrl"`
		MatchedKey  string `json:"matched_key"`
		MatchedKey2 string `json:"matchedKey"`
	}
	_, err := s.call(ctx, "GetCacheEntryDownloadURL", map[string]any{"key": key, "restore_keys": []string{key}, "version": version}, &out)
	var status *web.StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		return "", remote.ErrNotFound
	}
	if err != nil {
		return "", err
	}
	if !out.OK || !strings.HasPrefix(out.MatchedKey+out.MatchedKey2, key) {
		return "", remote.ErrNotFound
	}
	return out.Snake + out.Camel, nil
}

// open reads an entry.
func (s *Service) open(ctx context.Context, key, version string) (io.ReadCloser, error) {
	address, err := s.find(ctx, key, version)
	if err != nil {
		return nil, err
	}
	resp, err := s.web.Do(ctx, func(ctx context.Context) (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	}, http.StatusOK)
	var status *web.StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		s.mu.Lock()
		s.broken[key] = true
		s.mu.Unlock()
		return nil, remote.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (s *Service) isBroken(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken[key]
}

// write makes an entry whose key has the prefix. One of the same key that is
// there, or that somebody else is writing, is as good, unless it is damaged.
func (s *Service) write(ctx context.Context, prefix, version string, size int64, open func(context.Context) (io.ReadCloser, error), damaged bool) error {
	key := prefix + "0"
	if damaged {
		key = prefix + strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	var made struct {
		OK      bool   `json:"ok"`
		Snake   string `json:"signed_upload_url"`
		Camel   string `json:"signedUploadUrl"`
		Message string `json:"message"`
	}
	sent, err := s.call(ctx, "CreateCacheEntry", map[string]any{"key": key, "version": version}, &made)
	var status *web.StatusError
	if errors.As(err, &status) && status.Status == http.StatusConflict && !damaged {
		if sent == 1 {
			return nil
		}
		// It may be ours: made by an attempt whose answer was lost. Nobody would
		// ever fill it.
		return s.write(ctx, prefix, version, size, open, true)
	}
	if err != nil {
		return err
	}
	if !made.OK {
		return fmt.Errorf("the service takes no entry: %.200s", made.Message)
	}
	if err := s.upload(ctx, made.Snake+made.Camel, size, open); err != nil {
		return err
	}
	var done struct {
		OK      bool   `json:"ok"`
		Message string `json:"message"`
	}
	_, err = s.call(ctx, "FinalizeCacheEntryUpload", map[string]any{"key": key, "version": version, "size_bytes": strconv.FormatInt(size, 10)}, &done)
	if err == nil && !done.OK {
		err = fmt.Errorf("the service did not take an entry of %d bytes: %.200s", size, done.Message)
	}
	return err
}

// block is how much goes into one block of a large blob.
const block = 32 << 20

// upload writes a blob of Azure's storage: in one request, or in blocks and a
// list of them.
func (s *Service) upload(ctx context.Context, address string, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	content, err := open(ctx)
	if err != nil {
		return err
	}
	defer content.Close()
	if size <= block {
		data, err := readFull(content, size)
		if err != nil {
			return err
		}
		return s.put(ctx, address, nil, data)
	}
	var list bytes.Buffer
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for n := 0; size > 0; n++ {
		data, err := readFull(content, min(size, block))
		if err != nil {
			return err
		}
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", n))
		if err := s.put(ctx, address, url.Values{"comp": {"block"}, "blockid": {id}}, data); err != nil {
			return err
		}
		fmt.Fprintf(&list, "<Latest>%s</Latest>", id)
		size -= int64(len(data))
	}
	list.WriteString("</BlockList>")
	return s.put(ctx, address, url.Values{"comp": {"blocklist"}}, list.Bytes())
}

func readFull(r io.Reader, n int64) ([]byte, error) {
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return data, err
}

func (s *Service) put(ctx context.Context, address string, query url.Values, data []byte) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("the service gave an address that is none")
	}
	if len(query) > 0 {
		u.RawQuery += "&" + query.Encode()
	}
	resp, err := s.web.Do(ctx, func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), bytes.NewReader(data))
		if err == nil && len(query) == 0 {
			req.Header.Set("x-ms-blob-type", "BlockBlob")
		}
		if err == nil {
			req.Header.Set("x-ms-version", "2021-12-02")
		}
		return req, err
	}, http.StatusCreated, http.StatusOK)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func objectKey(name string) string { return name + "-" }

func blobKey(desc ocispec.Descriptor) string { return "strake1-b-" + desc.Digest.Encoded() + "-" }

// Get implements [remote.Backend].
func (s *Service) Get(ctx context.Context, name string) ([]byte, error) {
	r, err := s.open(ctx, objectKey(name), s.version)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, remote.MaxObject+1))
	if err == nil && len(data) > remote.MaxObject {
		err = remote.ErrNotFound // none of ours
	}
	return data, err
}

// Has implements [remote.Backend].
func (s *Service) Has(ctx context.Context, name string) (bool, error) {
	if s.isBroken(objectKey(name)) {
		return false, nil
	}
	_, err := s.find(ctx, objectKey(name), s.version)
	if errors.Is(err, remote.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put implements [remote.Backend].
func (s *Service) Put(ctx context.Context, name string, object []byte, blobs []blob.Ref, damaged bool) error {
	damaged = damaged || s.isBroken(objectKey(name))
	for _, ref := range blobs {
		if !damaged {
			_, err := s.find(ctx, blobKey(ref.Desc), blobVersion)
			if err == nil {
				continue
			}
			if !errors.Is(err, remote.ErrNotFound) {
				return err
			}
		}
		if err := s.write(ctx, blobKey(ref.Desc), blobVersion, ref.Desc.Size, ref.Open, damaged); err != nil {
			return err
		}
	}
	return s.write(ctx, objectKey(name), s.version, int64(len(object)), func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(object)), nil
	}, damaged || remote.IsMutable(name))
}

// Blob opens a blob; who reads it verifies it.
func (s *Service) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	return s.open(ctx, blobKey(desc), blobVersion)
}

// Origin implements [remote.Backend].
func (s *Service) Origin() string {
	return (&url.URL{Scheme: Scheme, Path: "/", RawQuery: url.Values{"scope": {s.scope}}.Encode()}).String()
}

// String implements [remote.Backend].
func (s *Service) String() string { return s.text }
