// Package s3test starts S3 servers for tests.
package s3test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/strake-build/strake/cache/remote/remotetest"
)

// Bucket, ID, Secret and Region are what the servers know.
const (
	Bucket = "cache"
	ID     = "id"
	Secret = "secret"
	Region = "eu-west-1"
)

// Variable names the program of a real server, versitygw, to be used instead of
// the one in memory. `make caches` runs tests so.
const Variable = "STRAKE_TEST_S3"

// Start starts a server that has the bucket. dir is an empty directory for it.
func Start(dir string) (h http.Handler, stop func() error, err error) {
	program := os.Getenv(Variable)
	if program == "" {
		backend := s3mem.New()
		return gofakes3.New(backend).Server(), func() error { return nil }, backend.CreateBucket(Bucket)
	}
	if err := os.Mkdir(filepath.Join(dir, Bucket), 0o755); err != nil {
		return nil, nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program, "--access", ID, "--secret", Secret, "--region", Region, "--port", address, "--quiet", "posix", dir)
	if stop, err = remotetest.Start(cmd); err != nil {
		return nil, nil, err
	}
	if err := awaitServer(address); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", program, err), stop())
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		r.Out.Host = r.In.Host // it is signed
	}}
	return proxy, stop, nil
}

// freeAddress is an address that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// awaitServer waits until somebody listens.
func awaitServer(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
