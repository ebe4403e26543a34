// Package s3 keeps a remote cache in a bucket of S3, or of another server that
// speaks its protocol.
//
//	<prefix>strake/<name>            objects
//	<prefix>blobs/sha256:<hex>       blobs, as BuildKit names them
//
// It knows the four requests that this takes. Requests are signed by Amazon's
// own signer; the whole SDK, and minio's, would cost every start of strake more
// than a build that has nothing to do.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/internal/web"
	"github.com/strake-build/strake/layers/blob"
)

// Scheme is that of origins: s3://bucket/prefix?region=…
const Scheme = "s3"

// Bucket is a cache in a bucket.
type Bucket struct {
	web    web.Client
	base   *url.URL // of the bucket
	region string
	creds  aws.Credentials
	prefix string
	blobs  string // prefix of blobs, after prefix
	origin string
	text   string
	signer *v4.Signer
}

var _ remote.Backend = (*Bucket)(nil)

// Open returns the cache that the attributes of a flag name, with what the
// environment says where they don't: AWS_BUCKET is not among it, AWS_REGION,
// AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are.
func Open(attrs map[string]string, getenv func(string) string, text string) (*Bucket, error) {
	first := func(attr string, vars ...string) string {
		if v := attrs[attr]; v != "" {
			return v
		}
		for _, name := range vars {
			if v := getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	b := &Bucket{
		web: web.Client{HTTP: web.NewHTTP()}, text: text, signer: v4.NewSigner(),
		region: first("region", "AWS_REGION", "AWS_DEFAULT_REGION"),
		prefix: attrs["prefix"], blobs: attrs["blobs_prefix"],
	}
	if b.blobs == "" {
		b.blobs = "blobs/"
	}
	if name := attrs["name"]; name != "" && name != "buildkit" {
		b.prefix += name + "/" // caches with other names know nothing of each other
	}
	b.creds = aws.Credentials{
		AccessKeyID:     first("access_key_id", "AWS_ACCESS_KEY_ID"),
		SecretAccessKey: first("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
		SessionToken:    first("session_token", "AWS_SESSION_TOKEN"),
	}
	if b.creds.AccessKeyID == "" || b.creds.SecretAccessKey == "" {
		return nil, errors.New("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give access_key_id= and secret_access_key=")
	}
	bucket := attrs["bucket"]
	if bucket == "" || strings.ContainsAny(bucket, "/?#@") {
		return nil, fmt.Errorf("bucket %q is not a name", bucket)
	}
	if b.region == "" {
		b.region = "us-east-1"
	}
	endpoint := first("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
	pathStyle := attrs["use_path_style"] == "true" || endpoint != "" && attrs["use_path_style"] != "false"
	if endpoint == "" {
		endpoint = "https://s3." + b.region + ".amazonaws.com"
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("endpoint_url=%s is not an http or https URL", endpoint)
	}
	if pathStyle {
		u.Path = path.Join("/", u.Path, bucket)
	} else {
		u.Host = bucket + "." + u.Host
	}
	b.base = u
	q := url.Values{}
	for k, v := range map[string]string{"region": b.region, "endpoint_url": first("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
		"use_path_style": attrs["use_path_style"], "blobs_prefix": attrs["blobs_prefix"]} {
		if v != "" {
			q.Set(k, v)
		}
	}
	b.origin = (&url.URL{Scheme: Scheme, Host: bucket, Path: "/" + b.prefix, RawQuery: q.Encode()}).String()
	return b, nil
}

// OpenOrigin returns the cache of an origin, with credentials of the
// environment.
func OpenOrigin(origin *url.URL, getenv func(string) string) (*Bucket, error) {
	attrs := map[string]string{"bucket": origin.Host, "prefix": strings.TrimPrefix(origin.Path, "/")}
	for k := range origin.Query() {
		attrs[k] = origin.Query().Get(k)
	}
	return Open(attrs, getenv, origin.String())
}

// emptyHash is the SHA-256 digest of nothing.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// send sends a request for a key. open gives the body, of size bytes with the
// SHA-256 digest hash, anew for each attempt.
func (b *Bucket) send(ctx context.Context, method, key, hash string, size int64, open func(context.Context) (io.ReadCloser, error), accept ...int) (*http.Response, error) {
	return b.web.Do(ctx, func(ctx context.Context) (*http.Request, error) {
		u := *b.base
		u.Path = strings.TrimSuffix(u.Path, "/") + "/" + key
		var body io.ReadCloser
		if open != nil {
			var err error
			if body, err = open(ctx); err != nil {
				return nil, err
			}
		}
		req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
		if err != nil {
			return nil, err
		}
		// Signed as it is sent: S3 decodes the path once.
		req.URL.RawPath = strings.ReplaceAll(req.URL.EscapedPath(), ":", "%3A")
		if open != nil {
			req.ContentLength = size
			if size == 0 {
				req.Body = http.NoBody
			}
		}
		req.Header.Set("X-Amz-Content-Sha256", hash)
		return req, b.signer.SignHTTP(ctx, b.creds, req, hash, "s3", b.region, time.Now(), func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	}, accept...)
}

func missing(err error) bool {
	var status *web.StatusError
	return errors.As(err, &status) && status.Status == http.StatusNotFound
}

func (b *Bucket) objectKey(name string) string { return b.prefix + "strake/" + name }

func (b *Bucket) blobKey(desc ocispec.Descriptor) string {
	return b.prefix + b.blobs + desc.Digest.String()
}

// Get implements [remote.Backend].
func (b *Bucket) Get(ctx context.Context, name string) ([]byte, error) {
	resp, err := b.send(ctx, http.MethodGet, b.objectKey(name), emptyHash, 0, nil, http.StatusOK)
	if missing(err) {
		return nil, remote.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, remote.MaxObject+1))
	if err == nil && len(data) > remote.MaxObject {
		err = remote.ErrNotFound // none of ours
	}
	return data, err
}

// Has implements [remote.Backend].
func (b *Bucket) Has(ctx context.Context, name string) (bool, error) {
	_, err := b.head(ctx, b.objectKey(name))
	if missing(err) {
		return false, nil
	}
	return err == nil, err
}

func (b *Bucket) head(ctx context.Context, key string) (int64, error) {
	resp, err := b.send(ctx, http.MethodHead, key, emptyHash, 0, nil, http.StatusOK)
	if err != nil {
		return 0, err
	}
	return resp.ContentLength, resp.Body.Close()
}

// maxBlob is what S3 takes in one request.
const maxBlob = 5 << 30

// Put implements [remote.Backend].
func (b *Bucket) Put(ctx context.Context, name string, object []byte, blobs []blob.Ref, damaged bool) error {
	for _, ref := range blobs {
		key := b.blobKey(ref.Desc)
		if !damaged {
			n, err := b.head(ctx, key)
			if err == nil && n == ref.Desc.Size {
				continue
			}
			if err != nil && !missing(err) {
				return err
			}
		}
		if ref.Desc.Size > maxBlob {
			return fmt.Errorf("layer %s of %d bytes is too large: S3 takes 5 GiB at once", ref.Desc.Digest, ref.Desc.Size)
		}
		// S3 compares the content with the digest.
		if err := b.put(ctx, key, ref.Desc.Digest.Encoded(), ref.Desc.Size, ref.Open); err != nil {
			return err
		}
	}
	sum := sha256.Sum256(object)
	return b.put(ctx, b.objectKey(name), hex.EncodeToString(sum[:]), int64(len(object)), func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(object)), nil
	})
}

func (b *Bucket) put(ctx context.Context, key, hash string, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	resp, err := b.send(ctx, http.MethodPut, key, hash, size, open, http.StatusOK, http.StatusCreated, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Blob opens a blob; who reads it verifies it.
func (b *Bucket) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	resp, err := b.send(ctx, http.MethodGet, b.blobKey(desc), emptyHash, 0, nil, http.StatusOK)
	if missing(err) {
		return nil, remote.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Origin implements [remote.Backend].
func (b *Bucket) Origin() string { return b.origin }

// String implements [remote.Backend].
func (b *Bucket) String() string { return b.text }
